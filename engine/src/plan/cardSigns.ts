import { padded, type CardRun } from './cardRun.js';
import { rankOf } from './layerMethod.js';
import { linearShapes } from './parameters.js';
import type { TargetModule } from './runSpec.js';

/** Card memory that updates by Muon and LoRA-Muon need: device/cuda/matrixUpdates.ts. */

/** Limit for all matrices of one shape that are processed together; more are processed in batches. */
const stackBytesMax = 2 ** 29;

export function matricesAtOnce(bytesOfOne: number): number {
  return Math.max(1, Math.floor(stackBytesMax / bytesOfOne));
}

type Arithmetic = 'float32' | 'bfloat16';

/** Bytes per matrix while its sign is computed, momentum included. */
export function signStackBytes(rows: number, columns: number, arithmetic: Arithmetic): number {
  const [m, n] = [Math.min(rows, columns), Math.max(rows, columns)];
  const operand = arithmetic === 'bfloat16' ? 2 : 0;
  return m * (padded(n) * (8 + operand) + padded(m) * (8 + 2 * operand));
}

/** The same for an adapter: both factors whitened, and L⁻¹ of both in float32 and float64. */
export function adapterStackBytes(
  { inFeatures, outFeatures, rank }: Record<'inFeatures' | 'outFeatures' | 'rank', number>,
  arithmetic: Arithmetic,
): number {
  const sides = [inFeatures, outFeatures];
  const whitened = sides.map((side) => signStackBytes(rank, side, arithmetic) + 4 * rank * padded(side));
  return whitened[0]! + whitened[1]! + 2 * rank * (8 * padded(rank) + 16 * rank);
}

/** Peak memory of an update; the passes have freed theirs by then. */
export function cardUpdateBytes({ spec, element }: CardRun): number {
  const { adapter, model, optimizer } = spec;
  const arithmetic = element === 2 ? 'bfloat16' : 'float32';
  const isMuon = adapter === null && optimizer.fullRankOptimizer === 'muon';
  if (!isMuon && adapter?.adapterOptimizer !== 'loraMuon') return 0;
  // Layers of the same shape are processed together, whatever their kind.
  const counts = new Map<number, number>();
  for (const [name, shape] of Object.entries(linearShapes(model)) as [TargetModule, LayerShape][]) {
    if (adapter !== null && !adapter.targetModules.includes(name)) continue;
    const bytes =
      adapter === null
        ? signStackBytes(shape.inFeatures, shape.outFeatures, arithmetic)
        : adapterStackBytes({ ...shape, rank: rankOf(adapter, name) }, arithmetic);
    counts.set(bytes, (counts.get(bytes) ?? 0) + model.numHiddenLayers);
  }
  return Math.max(...[...counts].map(([bytes, count]) => Math.min(count, matricesAtOnce(bytes)) * bytes));
}

type LayerShape = Record<'inFeatures' | 'outFeatures', number>;
