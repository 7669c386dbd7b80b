import { rankOf } from './layerMethod.js';
import { linearShapes, type countParameters } from './parameters.js';
import type { targetModules } from './runSpec.js';
import { type FullRankOptimizer, type RunSpec } from './runSpec.js';

/** Newton-Schulz iterations per matrix sign. */
const signSteps = 5;

/** Operations for the sign of a matrix, in each iteration: half of X Xᵀ, half of its square, and one product with X. */
export function signFlops(rows: number, columns: number): number {
  const [m, n] = [Math.min(rows, columns), Math.max(rows, columns)];
  return signSteps * (3 * m * m * n + m ** 3);
}

/** Operations of a Muon update of all linear layers. */
function muonFlops(model: RunSpec['model']): number {
  const shapes = Object.values(linearShapes(model));
  return (
    model.numHiddenLayers *
    shapes.reduce((sum, { inFeatures, outFeatures }) => sum + signFlops(inFeatures, outFeatures), 0)
  );
}

/** Operations of a LoRA-Muon update of all adapters: both Gram matrices, four thin products, two signs. */
function loraMuonFlops({ model, adapter }: Pick<RunSpec, 'model' | 'adapter'>): number {
  if (adapter === null) return 0;
  const shapes = linearShapes(model);
  const ofModule = (module: (typeof targetModules)[number]): number => {
    const rank = rankOf(adapter, module);
    const { inFeatures, outFeatures } = shapes[module];
    const sides = adapter.trainedFactors === 'bOnly' ? [outFeatures] : [inFeatures, outFeatures];
    const whitening = rank * rank * (inFeatures + outFeatures);
    return sides.reduce((sum, side) => sum + 4 * rank * rank * side + signFlops(rank, side), whitening);
  };
  return model.numHiddenLayers * adapter.targetModules.reduce((sum, module) => sum + ofModule(module), 0);
}

/** Seconds for the matrix signs of a step's update; 0 if its optimizer uses none. */
export function signSeconds(
  spec: Pick<RunSpec, 'model' | 'adapter' | 'optimizer'>,
  operationsPerSecond: number,
): number {
  const { adapter, model, optimizer } = spec;
  if (adapter === null && optimizer.fullRankOptimizer === 'muon')
    return muonFlops(model) / operationsPerSecond;
  if (adapter?.adapterOptimizer === 'loraMuon') return loraMuonFlops(spec) / operationsPerSecond;
  return 0;
}

/** Cost of a Muon update relative to the products of a full-rank step: about 3.3 min(in, out) / tokens. */
export function muonShare({ model, batch }: Pick<RunSpec, 'model' | 'batch'>): number {
  const weights = Object.values(linearShapes(model)).reduce(
    (sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures,
    0,
  );
  const tokens = batch.sequenceCount * batch.sequenceLength;
  return muonFlops(model) / (6 * tokens * weights * model.numHiddenLayers);
}

/**
 * The specification of a full-rank job whose steps cost what this run's full-rank steps cost: those of the warm start, or those between
 * cycles if there is no warm start.
 */
export function asFullRank(spec: RunSpec, optimizer: FullRankOptimizer = fullRankOptimizerOf(spec)): RunSpec {
  return {
    ...spec,
    kind: 'fullRank',
    adapter: null,
    optimizer: { ...spec.optimizer, fullRankOptimizer: optimizer },
  };
}

function fullRankOptimizerOf({ kind, optimizer, warmStart, adapter }: RunSpec): FullRankOptimizer {
  if (kind === 'fullRank' || adapter === null) return optimizer.fullRankOptimizer;
  return warmStart.stepCount > 0 ? warmStart.optimizer : adapter.fullRankOptimizer;
}

type Optimized = Pick<RunSpec, 'kind' | 'optimizer' | 'warmStart' | 'adapter'>;

/** Optimizers that train linear layers in any step of the run. */
export function optimizersOf({ kind, optimizer, warmStart, adapter }: Optimized): string[] {
  if (kind === 'fullRank' || adapter === null) return [optimizer.fullRankOptimizer];
  return [
    adapter.adapterOptimizer,
    ...(warmStart.stepCount > 0 ? [warmStart.optimizer] : []),
    ...(adapter.fullRankStepCount > 0 ? [adapter.fullRankOptimizer] : []),
  ];
}

/** Optimizer state as a multiple of the weight's size: close to 0 for APOLLO-Mini. */
const momentsOfEach = { adamw: 2, muon: 1, apolloMini: 0, loraMuon: 1 } as const;

/** A moment as an int8 code with a float32 scale for each block of 256. */
const int8MomentBytes = 1 + 4 / 256;

/** Linear layers by their own optimizer; everything else by AdamW. */
export function momentBytes(spec: RunSpec, counts: ReturnType<typeof countParameters>): number {
  const bytes = spec.optimizer.momentType === 'int8' ? int8MomentBytes : 4;
  const { adapter, optimizer } = spec;
  const each = momentsOfEach[adapter === null ? optimizer.fullRankOptimizer : adapter.adapterOptimizer];
  const own = adapter === null ? counts.linear : counts.trainable - counts.shared;
  return bytes * (2 * counts.shared + each * own);
}
