import { rankOf } from './layerMethod.js';
import { linearShapes, type countParameters } from './parameters.js';
import type { targetModules } from './runSpec.js';
import { type FullRankOptimizer, type RunSpec } from './runSpec.js';

/** Newton-Schulz steps of a sign. */
const signSteps = 5;

/** Operations of the sign of a matrix: half of X Xᵀ, half of its square, and one product with X, in each step. */
export function signFlops(rows: number, columns: number): number {
  const [m, n] = [Math.min(rows, columns), Math.max(rows, columns)];
  return signSteps * (3 * m * m * n + m ** 3);
}

/** Operations of an update of all linear layers by Muon. */
function muonFlops(model: RunSpec['model']): number {
  const shapes = Object.values(linearShapes(model));
  return (
    model.numHiddenLayers *
    shapes.reduce((sum, { inFeatures, outFeatures }) => sum + signFlops(inFeatures, outFeatures), 0)
  );
}

/** Operations of an update of all adapters by LoRA-Muon: both Gram matrices, four thin products, two signs. */
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

/** Seconds of the signs of a step's update, where its optimizer takes some. */
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

/** What an update of Muon costs over the products of a full-rank step: about 3.3 min(in, out) / tokens. */
export function muonShare({ model, batch }: Pick<RunSpec, 'model' | 'batch'>): number {
  const weights = Object.values(linearShapes(model)).reduce(
    (sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures,
    0,
  );
  const tokens = batch.sequenceCount * batch.sequenceLength;
  return muonFlops(model) / (6 * tokens * weights * model.numHiddenLayers);
}

/** A step of all weights, as a job of its own would take it: in the warm start, or between cycles, where there is none. */
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

/** Whatever trains linear layers in some step of the run. */
export function optimizersOf({ kind, optimizer, warmStart, adapter }: Optimized): string[] {
  if (kind === 'fullRank' || adapter === null) return [optimizer.fullRankOptimizer];
  return [
    adapter.adapterOptimizer,
    ...(warmStart.stepCount > 0 ? [warmStart.optimizer] : []),
    ...(adapter.fullRankStepCount > 0 ? [adapter.fullRankOptimizer] : []),
  ];
}

/** Whether some steps need calls that the device `cuda` does not have yet. */
export function needsProcessor({ replicas }: Pick<RunSpec, 'replicas'>): boolean {
  return replicas > 1;
}

/** Moments of a weight that an optimizer keeps, as many times the weight: next to nothing of APOLLO-Mini. */
const momentsOfEach = { adamw: 2, muon: 1, apolloMini: 0, loraMuon: 1 } as const;

/** A moment as an int8 code with a float32 scale for each block of 256. */
const int8MomentBytes = 1 + 4 / 256;

/** Of the linear layers by their own optimizer; of all else by AdamW. */
export function momentBytes(spec: RunSpec, counts: ReturnType<typeof countParameters>): number {
  const bytes = spec.optimizer.momentType === 'int8' ? int8MomentBytes : 4;
  const { adapter, optimizer } = spec;
  const each = momentsOfEach[adapter === null ? optimizer.fullRankOptimizer : adapter.adapterOptimizer];
  const own = adapter === null ? counts.linear : counts.trainable - counts.shared;
  return bytes * (2 * counts.shared + each * own);
}
