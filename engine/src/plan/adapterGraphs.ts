import { layerMethod, type LayerMethod } from './layerMethod.js';
import { linearShapes } from './parameters.js';
import type { RunSpec } from './runSpec.js';
import { targetModules, type LayerGraph, type TargetModule } from './words.js';

export type { LayerGraph };

/**
 * How each adapted layer is computed. separate: x W + s (x A) B, with W packed once a cycle. merged: x W' with W' = W + s A B, packed once
 * a step. weightGradient: like merged, but the gradients of A and B come from the dense xᵀ dy.
 */
export type LayerGraphs = Record<TargetModule, LayerGraph>;

export const separateGraphs = Object.fromEntries(
  targetModules.map((module) => [module, 'separate']),
) as LayerGraphs;

/** Whether base weights are packed once a cycle, so that steps do not need the float32 weights. */
export function arePackedOnce(graphs: LayerGraphs): boolean {
  return Object.values(graphs).every((graph) => graph === 'separate');
}

/** What the choice depends on besides the job. Nothing is timed, so the same job gets the same choice on every machine of this kind. */
export interface GraphMachine {
  /** Instruction set of native products, or architecture of a card; null on other backends, which have no merged graphs. */
  instructionSet: string | null;
  /** Precision of products, with `auto` resolved. */
  precision: 'float32' | 'bfloat16';
}

/** Throughput of bfloat16 products over that of float32 products, which merges use. */
const bfloat16Ratios: Record<string, number> = { amx: 8, avx512bf16: 2, neonBf16: 3.5 };

function productRatio({ instructionSet, precision }: GraphMachine): number {
  return precision === 'float32' ? 1 : (bfloat16Ratios[instructionSet ?? ''] ?? 1);
}

/**
 * Cost of repacking a weight in both directions, as the number of float32 product operations that take the same time: 0.9 ns per weight at
 * 210 GFLOP/s, both measured on two cores (docs/performance.md).
 */
export const packFlops = 190;

/** Operations per token of the products with A and with B, divided by rank × width of the input (output). */
export interface ThinPasses {
  inputs: number;
  outputs: number;
}

/**
 * What each graph computes at the rank. separate: x A, (x A) B; dy Bᵀ and its product with Aᵀ for dx; dA and dB. merged: x A for dB (all
 * that is needed if A is frozen); dy Bᵀ for dA. weightGradient: per weight, dA and dB from the dense xᵀ dy.
 */
export function thinPasses(trainsA: boolean): {
  separate: ThinPasses;
  merged: ThinPasses;
  weightGradient: number;
} {
  return {
    separate: { inputs: trainsA ? 6 : 4, outputs: 6 },
    merged: trainsA ? { inputs: 4, outputs: 4 } : { inputs: 2, outputs: 2 },
    weightGradient: trainsA ? 4 : 2,
  };
}

/** Fraction of the speed of wide products that products with `rank` columns or rows reach: measured for ranks 8 to 128. */
export const thinShare = (rank: number): number => (0.87 * rank) / (rank + 12);

/** Speed of the dense xᵀ dy relative to that of x W. */
export const weightGradientShare = 0.9;

/**
 * Operations of one layer and step under each graph, in equivalents of the base's product; a multiply-add counts as two. Gradients are
 * computed per micro-batch, a merged weight once per step.
 */
export function graphCosts(
  { inFeatures, outFeatures }: { inFeatures: number; outFeatures: number },
  { rank, trainsA }: Pick<LayerMethod, 'rank' | 'trainsA'>,
  batch: RunSpec['batch'],
  machine: GraphMachine,
): Record<LayerGraph, number> {
  const weights = inFeatures * outFeatures;
  const thinInputs = (rank * inFeatures) / thinShare(rank);
  const thinOutputs = (rank * outFeatures) / thinShare(rank);
  const tokens = batch.sequenceCount * batch.sequenceLength;
  const micros = Math.ceil(batch.sequenceCount / batch.microBatchSequenceCount);
  const merging = (2 * rank + packFlops) * weights * productRatio(machine);
  const thinOf = (passes: ThinPasses): number => passes.inputs * thinInputs + passes.outputs * thinOutputs;
  const { separate, merged, weightGradient } = thinPasses(trainsA);
  return {
    separate: tokens * (4 * weights + thinOf(separate)),
    merged: tokens * (4 * weights + thinOf(merged)) + merging,
    weightGradient:
      tokens * (4 + 2 / weightGradientShare) * weights +
      (micros * weightGradient * rank * weights) / thinShare(rank) +
      merging,
  };
}

/**
 * Chooses the cheapest graph for each kind of layer, or the one that the job asks for. Only `separate` can be packed once a cycle, as a
 * quantized base must be, and only `separate` supports dropout and a trainable scale.
 */
export function chooseGraphs(spec: RunSpec, machine: GraphMachine): LayerGraphs {
  const { adapter, batch } = spec;
  const shapes = linearShapes(spec.model);
  const mustBeSeparate =
    adapter === null ||
    machine.instructionSet === null ||
    adapter.dropout > 0 ||
    adapter.trainableScale ||
    spec.precision === 'int8Base' ||
    spec.precision === 'nf4Base' ||
    spec.precision === 'fp8Base';
  const choose = (module: TargetModule): LayerGraph => {
    if (mustBeSeparate || !adapter.targetModules.includes(module)) return 'separate';
    if (adapter.graph !== 'auto') return adapter.graph;
    // On a card computing W' takes a hundredth of a step, and thin products run far slower than wide ones.
    if (machine.instructionSet?.startsWith('sm_')) return 'merged';
    const costs = Object.entries(graphCosts(shapes[module], layerMethod(adapter, module), batch, machine));
    return costs.reduce((best, cost) => (cost[1] < best[1] ? cost : best))[0] as LayerGraph;
  };
  return Object.fromEntries(targetModules.map((module) => [module, choose(module)])) as LayerGraphs;
}
