import { performance } from 'node:perf_hooks';
import { openSafetensors } from '../io/safetensors.js';
import { writeStartWeights } from '../io/checkpoint.js';
import { adapterPlan } from '../model/adapterSet.js';
import { Random } from '../random.js';
import { largestChange, probeLogits } from './probe.js';
import { measureRanks } from './rankTelemetry.js';
import type { LayerRank } from './trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

/** Freezes the base, gives its layers adapters and keeps a copy of it on disk, against which ranks are measured. */
export async function beginAdapters(run: TrainingRun): Promise<void> {
  if (run.spec.adapter === null) throw new Error(`A ${run.spec.kind} run has no adapters`);
  run.frozen.start = await writeStartWeights(run);
  run.frozen.base = run.frozen.start; // the same weights until the first merge
  run.model.attachAdapters(run.spec.adapter, run.spec.seed, 0, adapterPlan(run.graphs, run.folder));
  run.optimizer.dropBase();
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
  model.restartAdapters(spec.seed, number);
  const random = Random.forStream(spec.seed, 'moments', number);
  const { momentReset, momentPruneRatio } = spec.adapter;
  const momentsZeroedRatio = optimizer.forgetAdapters(momentReset, momentPruneRatio, () => random.uniform());
  progress.restartCount = number;

  const logitChangeMax = largestChange(before, await probeLogits(run));
  const ranks = await measureRunRanks(run);
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
