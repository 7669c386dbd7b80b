import type { DeviceSpeed } from './deviceSpeed.js';
import { isBaseMapped, peakMemory, totalOf } from './memoryModel.js';
import { thinPasses } from './adapterGraphs.js';
import { layerMethod } from './layerMethod.js';
import { countParameters, linearShapes } from './parameters.js';
import { asFullRank, fullRankPhases, momentBytes } from './optimizerCost.js';
import type { FullRankOptimizer, GgufType, Phase, RunSpec } from './runSpec.js';
import { Schedule } from './schedule.js';
import { secondsOf, stepTime } from './timeModel.js';

export interface Estimate {
  parameterCount: number;
  trainableParameterCount: number;
  peakMemoryBytes: number;
  /** The phase that needs it; null: loading, or the change to adapters. */
  peakMemoryPhase: Phase | null;
  /** In the main phase. */
  flopsPerToken: number;
  fullRankFlopsPerToken: number;
  /** Tokens in the whole run. */
  tokenCount: number;
  /** Of steps only: evaluations, merges and checkpoints come on top. Infinite if the device's speed is unknown. */
  durationSeconds: number;
  /** Where updates compute matrix signs (Muon, LoRA-Muon): their time relative to the rest of a step. */
  signRatios: { phase: Phase; ratio: number }[];
  diskBytes: number;
}

/**
 * What a job costs, computed only from its specification and the device's measured speed. flops follow relora.md §5, per token: a trained
 * layer takes 6·in·out, a frozen one with an adapter 4·in·out + 6·r·(in + out), or 2·r·in less if A is frozen; attention takes
 * 12·time·hidden·½ per layer for its causal half.
 */
export function estimateRun(spec: RunSpec, device: DeviceSpeed): Estimate {
  const schedule = new Schedule(spec);
  const counts = countParameters(spec);
  const tokensPerStep = spec.batch.sequenceCount * spec.batch.sequenceLength;
  const fullRankFlopsPerToken = flopsPerToken({ ...spec, adapter: null });
  const mainFlopsPerToken = flopsPerToken(spec);

  const trained = [spec, ...fullRankPhases(spec).map(({ as }) => as)];
  const checkpointBytes =
    4 * (counts.model + counts.adapter) +
    Math.max(...trained.map((phase) => momentBytes(phase, countParameters(phase))));
  const peak = peakMemory(spec, device);
  return {
    parameterCount: counts.model,
    trainableParameterCount: counts.trainable,
    peakMemoryBytes: totalOf(peak.parts),
    peakMemoryPhase: peak.phase,
    flopsPerToken: mainFlopsPerToken,
    fullRankFlopsPerToken,
    tokenCount: schedule.stepCount * tokensPerStep,
    durationSeconds: runSeconds(spec, device, schedule),
    signRatios: signRatios(spec, device),
    // While a checkpoint is written there is one more than are kept. The start of the adapter phase is kept too, and by every process the
    // float32 base while memory has only its packed form.
    diskBytes:
      (spec.checkpoint.keepCount + (spec.checkpoint.keepBest ? 2 : 1)) * checkpointBytes +
      artifactBytes(spec) +
      (spec.adapter ? 4 * counts.linear : 0) +
      (isBaseMapped(spec, device) ? spec.replicas * 4 * counts.linear : 0),
  };
}

/** Bytes of the weights in all formats of the export; PEFT has the adapters besides their base. */
function artifactBytes(spec: RunSpec): number {
  const { formats, weightType, ggufType } = spec.export;
  const { model, adapter } = countParameters(spec);
  return formats.reduce((sum, format) => {
    const elementBytes = bytesPerWeight[format === 'gguf' ? ggufType : weightType];
    return sum + elementBytes * (format === 'peft' ? model + adapter : model);
  }, 0);
}

/** q8_0 has 34 bytes for 32 weights (quantizeQ8.ts). */
const bytesPerWeight: Record<GgufType, number> = { float32: 4, float16: 2, bfloat16: 2, q8_0: 34 / 32 };

/** Seconds that all steps of a run take. */
export function runSeconds(spec: RunSpec, device: DeviceSpeed, schedule = new Schedule(spec)): number {
  const between = schedule.fullRankStepCountBetween;
  const mainStepCount = schedule.stepCount - schedule.warmStartStepCount - between;
  const secondsBy = (stepCount: number, optimizer: FullRankOptimizer): number =>
    stepCount === 0 ? 0 : stepCount * secondsOf(stepTime(asFullRank(spec, optimizer), device));
  return (
    secondsBy(schedule.warmStartStepCount, spec.warmStart.optimizer) +
    secondsBy(between, spec.adapter?.fullRankOptimizer ?? 'adamw') +
    mainStepCount * secondsOf(stepTime(spec, device))
  );
}

function signRatios(spec: RunSpec, device: DeviceSpeed): Estimate['signRatios'] {
  const phases = fullRankPhases(spec);
  if (spec.adapter !== null) phases.push({ phase: 'adapter', as: spec });
  return phases.flatMap(({ phase, as }) => {
    const { signs, ...rest } = stepTime(as, device);
    const ratio = signs / secondsOf({ ...rest, signs: 0 });
    return ratio > 0 ? [{ phase, ratio }] : []; // neither 0 nor, if the device's speed is unknown, NaN
  });
}

function flopsPerToken(spec: Pick<RunSpec, 'model' | 'adapter' | 'batch'>): number {
  const { model, adapter, batch } = spec;
  const shapes = linearShapes(model);
  let flops = 6 * model.vocabSize * model.hiddenSize;
  for (const [name, { inFeatures, outFeatures }] of Object.entries(shapes)) {
    const module = adapter?.targetModules.find((module) => module === name);
    flops += model.numHiddenLayers * (adapter === null ? 6 : 4) * inFeatures * outFeatures;
    if (adapter === null || module === undefined) continue;
    const { rank, trainsA } = layerMethod(adapter, module);
    const passes = thinPasses(trainsA).separate;
    flops += model.numHiddenLayers * rank * (passes.inputs * inFeatures + passes.outputs * outFeatures);
  }
  return flops + model.numHiddenLayers * 6 * batch.sequenceLength * shapes.q_proj.outFeatures;
}
