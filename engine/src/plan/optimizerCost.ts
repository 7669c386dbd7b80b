import { rankOf } from './layerMethod.js';
import { linearShapes, type countParameters } from './parameters.js';
import type { AdapterSettings, FullRankOptimizer, Phase, RunSpec } from './runSpec.js';
import { Schedule } from './schedule.js';

/** Newton-Schulz iterations per matrix sign. */
const signSteps = 5;

/** Work of matrix signs: arithmetic of their products, and elements that are packed for these, copied and added. */
export interface SignWork {
  flops: number;
  elements: number;
}

/** In each iteration: half of X Xᵀ, half of its square, and one product with X. */
export function signWork(rows: number, columns: number): SignWork {
  const [m, n] = [Math.min(rows, columns), Math.max(rows, columns)];
  return { flops: signSteps * (3 * m * m * n + m ** 3), elements: signSteps * (3 * m * n + m * m) };
}

/** A Muon update of all linear layers. */
function muonWork(model: RunSpec['model']): SignWork {
  const works = Object.values(linearShapes(model)).map((shape) =>
    signWork(shape.inFeatures, shape.outFeatures),
  );
  return sumOf(works, model.numHiddenLayers);
}

/** A LoRA-Muon update of all adapters: both Gram matrices, four thin products, two signs. */
function loraMuonWork(model: RunSpec['model'], adapter: AdapterSettings): SignWork {
  const shapes = linearShapes(model);
  const works = adapter.targetModules.flatMap((module) => {
    const rank = rankOf(adapter, module);
    const { inFeatures, outFeatures } = shapes[module];
    const sides = adapter.trainedFactors === 'bOnly' ? [outFeatures] : [inFeatures, outFeatures];
    const whitening = { flops: rank * rank * (inFeatures + outFeatures), elements: 0 };
    return [
      whitening,
      ...sides.map((side) => ({ flops: 4 * rank * rank * side, elements: 4 * rank * side })),
      ...sides.map((side) => signWork(rank, side)),
    ];
  });
  return sumOf(works, model.numHiddenLayers);
}

function sumOf(works: readonly SignWork[], count: number): SignWork {
  const sum = (of: keyof SignWork): number => works.reduce((total, work) => total + count * work[of], 0);
  return { flops: sum('flops'), elements: sum('elements') };
}

/** Matrix signs of a step's update; null if its optimizer uses none. */
export function signWorkOf({
  adapter,
  model,
  optimizer,
}: Pick<RunSpec, 'model' | 'adapter' | 'optimizer'>): SignWork | null {
  if (adapter === null) return optimizer.fullRankOptimizer === 'muon' ? muonWork(model) : null;
  return adapter.adapterOptimizer === 'loraMuon' ? loraMuonWork(model, adapter) : null;
}

/** The specification of a full-rank job whose steps cost what this run's full-rank steps by that optimizer cost. */
export function asFullRank(spec: RunSpec, optimizer: FullRankOptimizer): RunSpec {
  return {
    ...spec,
    kind: 'fullRank',
    adapter: null,
    optimizer: { ...spec.optimizer, fullRankOptimizer: optimizer },
  };
}

/** The phases in which a run trains all weights, each as a full-rank job whose steps cost the same. */
export function fullRankPhases(spec: RunSpec): { phase: Phase; as: RunSpec }[] {
  const { adapter, kind, warmStart } = spec;
  if (kind === 'fullRank' || adapter === null) return [{ phase: 'fullRank', as: spec }];
  const phases: { phase: Phase; as: RunSpec }[] = [];
  if (warmStart.stepCount > 0) phases.push({ phase: 'warmStart', as: asFullRank(spec, warmStart.optimizer) });
  if (new Schedule(spec).fullRankStepCountBetween > 0)
    phases.push({ phase: 'fullRank', as: asFullRank(spec, adapter.fullRankOptimizer) });
  return phases;
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
