import { performance } from 'node:perf_hooks';
import { openSafetensors } from '../io/safetensors.js';
import { writeStartWeights } from '../io/checkpoint.js';
import { adapterPlan } from '../model/adapterSet.js';
import { Random } from '../random.js';
import { startAdapters } from './cycleStart.js';
import { largestChange, probeLogits } from './probe.js';
import { measureRanks } from './rankTelemetry.js';
import type { LayerRank } from './trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Freezes the base and gives its layers the adapters of the cycle that comes. What the base was before the first of them is kept
 * on disk: ranks are measured against it.
 */
export async function beginAdapters(run: TrainingRun): Promise<void> {
  const { model, spec, progress, frozen } = run;
  if (spec.adapter === null) throw new Error(`A ${spec.kind} run has no adapters`);
  if (frozen.start === null) {
    frozen.start = await writeStartWeights(run);
    frozen.base = frozen.start; // the same weights until the first merge
  }
  const number = progress.restartCount;
  model.attachAdapters(spec.adapter, spec.seed, number, adapterPlan(run.graphs, run.folder));
  run.optimizer.drop('base');
  // Drawn ones are there already.
  if (spec.adapter.initialisation !== 'random') await startAdapters(run, number);
}

export interface RestartReport {
  restart: number;
  deltaNorm: number;
  logitChangeMax: number;
  momentsZeroedRatio: number;
  ranks: LayerRank[];
  effectiveRank: number;
  seconds: number;
}

/**
 * Ends a cycle and begins the next (relora.md §4): what the adapters learned goes into W, they start anew, and their moments, which
 * point along directions that are now in W, are forgotten. Throws MergeNotFinite before anything is changed.
 */
export async function restart(run: TrainingRun): Promise<RestartReport> {
  const { model, optimizer, spec, progress } = run;
  if (spec.adapter === null) throw new Error(`A ${spec.kind} run has no restarts`);
  const startedAt = performance.now();
  const before = await probeLogits(run);
  const number = progress.restartCount + 1;

  const { deltaNorm } = model.mergeAdapters();
  run.frozen.base = null; // the file of the old base no longer holds what the model has
  const ranks = await measureRunRanks(run);
  const momentsZeroedRatio = await beginCycle(run, number);
  progress.restartCount = number;

  const logitChangeMax = largestChange(before, await probeLogits(run));
  return {
    restart: number,
    deltaNorm,
    logitChangeMax,
    momentsZeroedRatio,
    ranks,
    effectiveRank:
      ranks.reduce((sum, { effectiveRank }) => sum + effectiveRank, 0) / Math.max(1, ranks.length),
    seconds: (performance.now() - startedAt) / 1000,
  };
}

/** What is trained next after a merge: adapters that start anew, or for some steps all weights. Gives the share of moments that are gone. */
async function beginCycle(run: TrainingRun, number: number): Promise<number> {
  const { model, optimizer, spec } = run;
  const { momentReset, momentPruneRatio, fullRankStepCount } = spec.adapter!;
  if (fullRankStepCount > 0) {
    model.detachAdapters();
    optimizer.drop('adapter');
    optimizer.drop('scale');
    return 1;
  }
  await startAdapters(run, number);
  const random = Random.forStream(spec.seed, 'moments', number);
  return optimizer.forgetAdapters(momentReset, momentPruneRatio, () => random.uniform());
}

/** Ranks of what all merges of the adapter phase have changed so far. */
async function measureRunRanks(run: TrainingRun): Promise<LayerRank[]> {
  const start = run.frozen.start;
  if (start === null)
    throw new Error('Ranks are measured against the start of the adapter phase, which is not stored');
  const file = await openSafetensors(start.path);
  try {
    const read = (layer: { weight: { name: string } }) => file.readFloat32(layer.weight.name);
    return await measureRanks(run.model.layers, read, run.backend.native);
  } finally {
    await file.close();
  }
}
