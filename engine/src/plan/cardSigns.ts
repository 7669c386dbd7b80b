import { padded, type CardRun } from './cardRun.js';
import { rankOf } from './layerMethod.js';
import { linearShapes } from './parameters.js';
import type { TargetModule } from './runSpec.js';

/** What updates by Muon and LoRA-Muon take of a card: device/cuda/matrixUpdates.ts. */

/** What matrices of one shape may take together while they are worked on: more of them go in turns. */
const stackBytesMax = 2 ** 29;

export function matricesAtOnce(bytesOfOne: number): number {
  return Math.max(1, Math.floor(stackBytesMax / bytesOfOne));
}

type Arithmetic = 'float32' | 'bfloat16';

/** Bytes that a matrix takes while its sign is made, with its momentum. */
export function signStackBytes(rows: number, columns: number, arithmetic: Arithmetic): number {
  const [m, n] = [Math.min(rows, columns), Math.max(rows, columns)];
  const operand = arithmetic === 'bfloat16' ? 2 : 0;
  return m * (padded(n) * (8 + operand) + padded(m) * (8 + 2 * operand));
}

/** The same of an adapter: both factors whitened, and L⁻¹ of both in float32 and float64. */
export function adapterStackBytes(
  { inFeatures, outFeatures, rank }: Record<'inFeatures' | 'outFeatures' | 'rank', number>,
  arithmetic: Arithmetic,
): number {
  const sides = [inFeatures, outFeatures];
  const whitened = sides.map((side) => signStackBytes(rank, side, arithmetic) + 4 * rank * padded(side));
  return whitened[0]! + whitened[1]! + 2 * rank * (8 * padded(rank) + 16 * rank);
}

/** What an update takes at its peak, when the passes have given back theirs. */
export function cardUpdateBytes({ spec, element }: CardRun): number {
  const { adapter, model, optimizer } = spec;
  const arithmetic = element === 2 ? 'bfloat16' : 'float32';
  const isMuon = adapter === null && optimizer.fullRankOptimizer === 'muon';
  if (!isMuon && adapter?.adapterOptimizer !== 'loraMuon') return 0;
  // Layers of one shape go together, whichever they are.
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
