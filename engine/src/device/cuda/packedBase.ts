import type { FrozenBase, Layer } from '../device.js';
import { newMatrix, padded, tight, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { Scope } from './scope.js';

/**
 * A frozen weight in the type of products, packed on first use: by then all weights that are frozen with it are parked, so packed ones are
 * contiguous.
 */
export interface CardBase extends FrozenBase {
  /** In e4m3, packed together with the layers that it is joined with; if they cannot be joined, products read the weight in bfloat16. */
  readonly isE4m3: boolean;
  holder: object | null;
  /** Incremented whenever the weight is packed. */
  version: number;
  /** In the type of products, except for e4m3; null before the first use, and in float32, for which products read the weight. */
  matrix: Matrix | null;
  /** Frees its memory, or its share of a joined matrix. */
  release: () => void;
}

export function newCardBase(
  inFeatures: number,
  outFeatures: number,
  isE4m3: boolean,
  type: Matrix['type'],
): CardBase {
  // e4m3 codes for both directions take as much as bfloat16.
  const bytes = type === 'float' ? 0 : 2 * inFeatures * (isE4m3 ? outFeatures : padded(outFeatures));
  return {
    inFeatures,
    outFeatures,
    bytes,
    isE4m3,
    holder: null,
    version: 0,
    matrix: null,
    release: () => undefined,
  };
}

/** The packed base of a single layer; null if products read the weight. */
export function packedBase(calls: MatrixCalls, layer: Layer, arithmetic: Arithmetic): Matrix | null {
  const base = layer.base as CardBase | null;
  if (base === null) return null;
  if (base.matrix !== null || base.isE4m3 || arithmetic === 'float32') return base.matrix;
  const scope = new Scope(calls.memory);
  const matrix = newMatrix(scope, layer.inFeatures, layer.outFeatures, 'bf16');
  packInto(calls, matrix, layer);
  Object.assign(base, { matrix, release: () => scope.end() });
  return matrix;
}

/** to = the layer's weight, rounded. */
export function packInto(
  calls: MatrixCalls,
  to: Matrix,
  { weight, inFeatures, outFeatures, name }: Pick<Layer, 'weight' | 'inFeatures' | 'outFeatures' | 'name'>,
): void {
  const scope = new Scope(calls.memory);
  const from = calls.memory.stagedFloats(weight, inFeatures * outFeatures, name, scope);
  calls.copy(to, tight(from, inFeatures, outFeatures));
  scope.end();
}
