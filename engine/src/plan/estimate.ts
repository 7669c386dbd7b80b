import { countParameters, linearShapes } from './parameters.js';
import type { RunSpec } from './runSpec.js';
import { Schedule } from './schedule.js';

/** What a device can do, as the server measured it at its start. */
export interface DeviceSpeed {
  /** Floating point operations per second of the arithmetic that the job uses. */
  flopsPerSecond: number;
  /** Bytes of an operand in the packed panels of frozen weights: 4 in float32, 2 in bfloat16. */
  packedBytes: 2 | 4;
}

export interface Estimate {
  parameterCount: number;
  trainableParameterCount: number;
  peakMemoryBytes: number;
  /** Of the main phase. */
  flopsPerToken: number;
  fullRankFlopsPerToken: number;
  /** Tokens of the whole run. */
  tokenCount: number;
  durationSeconds: number;
  diskBytes: number;
}

/**
 * Share of the measured peak that whole steps reach: 0.53 to 0.73 from the demo's model to llama-60m
 * (bench/results/2026-11-24-amd-epyc-avx512bf16.md); smaller models lose more to what is not a product.
 */
const stepEfficiency = 0.6;
/** Node, its heap, the addon and the buffers of products. */
const processBytes = 160e6;
/** Rows of logits held at once by the fused head (headCrossEntropy). */
const headChunkRows = 256;

/**
 * What a job costs, from its specification alone. flops follow relora.md §5: a trained layer takes 6·in·out per token,
 * a frozen one with an adapter 4·in·out + 6·r·(in + out), attention 12·time·hidden·½ per layer for its causal half.
 */
export function estimateRun(spec: RunSpec, device: DeviceSpeed): Estimate {
  const schedule = new Schedule(spec);
  const counts = countParameters(spec);
  const tokensPerStep = spec.batch.sequenceCount * spec.batch.sequenceLength;
  const fullRankFlopsPerToken = flopsPerToken({ ...spec, adapter: null });
  const mainFlopsPerToken = flopsPerToken(spec);
  const flops =
    tokensPerStep *
    (schedule.warmStartStepCount * fullRankFlopsPerToken + spec.stepCount * mainFlopsPerToken);

  const checkpointBytes =
    4 * (counts.model + counts.adapter) + 8 * Math.max(counts.trainable, trainableInWarmStart(spec));
  const weightBytes = spec.export.weightType === 'float32' ? 4 : 2;
  return {
    parameterCount: counts.model,
    trainableParameterCount: counts.trainable,
    peakMemoryBytes: peakMemoryBytes(spec, device),
    flopsPerToken: mainFlopsPerToken,
    fullRankFlopsPerToken,
    tokenCount: schedule.stepCount * tokensPerStep,
    durationSeconds: flops / (stepEfficiency * device.flopsPerSecond),
    // One checkpoint more than is kept exists while the next is written; the start of the adapter phase is kept as well.
    diskBytes:
      (spec.checkpoint.keepCount + 1) * checkpointBytes +
      weightBytes * counts.model +
      (spec.adapter ? 4 * counts.linear : 0),
  };
}

function flopsPerToken(spec: Pick<RunSpec, 'model' | 'adapter' | 'batch'>): number {
  const { model, adapter, batch } = spec;
  let flops = 6 * model.vocabSize * model.hiddenSize;
  for (const [name, { inFeatures, outFeatures }] of Object.entries(linearShapes(model))) {
    const adapted = adapter !== null && adapter.targetModules.some((module) => module === name);
    if (adapted)
      flops +=
        model.numHiddenLayers *
        (4 * inFeatures * outFeatures + 6 * adapter.rank * (inFeatures + outFeatures));
    else flops += model.numHiddenLayers * (adapter === null ? 6 : 4) * inFeatures * outFeatures;
  }
  return flops + model.numHiddenLayers * 6 * batch.sequenceLength * model.hiddenSize;
}

function trainableInWarmStart(spec: RunSpec): number {
  return spec.kind !== 'fullRank' && spec.warmStart.stepCount > 0
    ? countParameters({ ...spec, kind: 'fullRank', adapter: null }).trainable
    : 0;
}

/** The larger of the warm start's and the main phase's peak. */
function peakMemoryBytes(spec: RunSpec, device: DeviceSpeed): number {
  const counts = countParameters(spec);
  const { model, batch } = spec;
  const microTokens = batch.microBatchSequenceCount * batch.sequenceLength;
  const accumulates = batch.microBatchSequenceCount < batch.sequenceCount;
  // Two moments, one gradient, and a second gradient while micro-batches are summed.
  const bytesPerTrained = 8 + 4 * (accumulates ? 2 : 1);

  const kvSize = (model.hiddenSize / model.numAttentionHeads) * model.numKeyValueHeads;
  // Kept for the backward pass of a block: two norms, q k v before and after rotation, attention and its projection,
  // gate, up, their product and the way down, two residuals.
  const activationsPerToken = 9 * model.hiddenSize + 3 * kvSize + 3 * model.intermediateSize;
  const adapterActivations = (spec.adapter?.rank ?? 0) * (spec.adapter?.targetModules.length ?? 0);
  const activations = (perToken: number) =>
    4 * microTokens * (model.numHiddenLayers * perToken + 4 * model.hiddenSize);
  const head = 4 * Math.min(microTokens, headChunkRows) * model.vocabSize;

  const warmStart =
    4 * counts.model + bytesPerTrained * trainableInWarmStart(spec) + activations(activationsPerToken) + head;
  const packed = spec.adapter ? 2 * device.packedBytes * counts.linear : 0;
  const main =
    4 * (counts.model + counts.adapter) +
    packed +
    bytesPerTrained * counts.trainable +
    activations(activationsPerToken + adapterActivations) +
    head;
  return processBytes + Math.max(warmStart, main);
}
