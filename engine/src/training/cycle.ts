import { performance } from 'node:perf_hooks';
import { openSafetensors } from '../io/safetensors.js';
import { writeStartWeights } from './checkpoint.js';
import { adapterPlan } from '../model/adapterSet.js';
import { Random } from '../random.js';
import { startAdapters } from './cycleStart.js';
import { requireSameFunction } from './mergeDrift.js';
import { takeProbe } from './probe.js';
import { requireSameBits } from './sameBits.js';
import { measureRanks } from './rankTelemetry.js';
import { mean, restartModules } from './restartModules.js';
import { MomentsNotZero } from './trainingErrors.js';
import type { LayerRank, RestartReport } from '../plan/trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Freezes the base and attaches the adapters of the next cycle. The base before the first cycle is stored on disk: ranks are measured
 * against it.
 */
export async function beginAdapters(run: TrainingRun): Promise<void> {
  const { model, spec, progress, frozen, collective } = run;
  if (spec.adapter === null) throw new Error(`A ${spec.kind} run has no adapters`);
  if (frozen.start === null && collective.rank === 0) {
    frozen.start = await writeStartWeights(run);
    frozen.base = frozen.start; // the same weights until the first merge
  }
  const number = progress.restartCount;
  run.gradients.dispose(); // the gradients of the base
  model.attachAdapters(spec.adapter, spec.seed, number, adapterPlan(run.graphs, run.folder));
  run.optimizer.drop('base');
  // Random ones are in place already.
  if (spec.adapter.initialisation !== 'random') await startAdapters(run, number);
}

/**
 * Ends a cycle and begins the next (relora.md §4): adapters are merged into W and reinitialized, and their moments, which point along
 * directions that are now in W, are reset. Throws MergeNotFinite before anything is changed, and MergeDrift or MomentsNotZero if the
 * restart failed its checks: the run is then unusable, its last checkpoint is fine. If a run has several members, the first measures and
 * reports; the others get null.
 */
export async function restart(run: TrainingRun): Promise<RestartReport | null> {
  const { model, schedule, spec, progress } = run;
  if (spec.adapter === null) throw new Error(`A ${spec.kind} run has no restarts`);
  const startedAt = performance.now();
  // A restart holds logits and merged weights, and packs the head in float32. Step buffers are freed before it, and its own after it, so
  // that peak memory stays that of a step.
  run.device.trim();
  const leads = run.collective.rank === 0;
  const before = leads ? await takeProbe(run) : null;
  const number = progress.restartCount + 1;

  const { deltaNorm, byLayer } = await model.mergeAdapters();
  run.frozen.base = null; // the stored base differs from the model's now
  const ranks = leads ? await measureRunRanks(run) : [];
  const momentsZeroedRatio = await beginCycle(run, number);
  if (spec.adapter.momentReset === 'zero' && momentsZeroedRatio !== 1)
    throw new MomentsNotZero(number, momentsZeroedRatio);
  progress.restartCount = number;
  if (!run.isApart) await requireSameBits(run);
  if (before === null) {
    run.device.trim();
    return null;
  }

  const after = await takeProbe(run);
  const drift = requireSameFunction(run, before, after);
  for (const { logits } of [before, after]) run.device.discard(logits);
  run.device.trim();
  return {
    restart: number,
    deltaNorm,
    ...drift,
    momentsZeroedRatio,
    ranks,
    effectiveRank: mean(ranks.map(({ effectiveRank }) => effectiveRank)),
    modules: restartModules(model.layers, byLayer, ranks),
    learningRateBefore: schedule.learningRateAt(progress.nextStep - 1),
    learningRateAfter: schedule.learningRateAt(progress.nextStep),
    lossBefore: before.loss,
    lossAfter: after.loss,
    seconds: (performance.now() - startedAt) / 1000,
  };
}

/** Prepares what is trained after a merge: fresh adapters, or all weights for some steps. Returns the fraction of moments that are zero. */
async function beginCycle(run: TrainingRun, number: number): Promise<number> {
  const { model, optimizer, spec } = run;
  const { momentReset, momentPruneRatio, fullRankStepCount } = spec.adapter!;
  if (fullRankStepCount > 0) {
    model.detachAdapters();
    optimizer.drop('adapter');
    optimizer.drop('scale');
    return 1;
  }
  const turns = await startAdapters(run, number);
  if (momentReset === 'carry') return await optimizer.carryAdapters(turns);
  const random = Random.forStream(spec.seed, 'moments', number);
  return await optimizer.forgetAdapters(momentReset, momentPruneRatio, () => random.uniform());
}

/** Ranks of the change by all merges of the adapter phase so far. */
async function measureRunRanks(run: TrainingRun): Promise<LayerRank[]> {
  const start = run.frozen.start;
  if (start === null)
    throw new Error('Ranks are measured against the start of the adapter phase, which is not stored');
  const file = await openSafetensors(start.path);
  try {
    const read = (layer: { weight: { name: string } }) => file.readFloat32(layer.weight.name);
    return await measureRanks(run.model.layers, read, run.model);
  } finally {
    await file.close();
  }
}
