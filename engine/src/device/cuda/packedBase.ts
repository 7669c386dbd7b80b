import type { FrozenBase, Layer } from '../device.js';
import { newMatrix, padded, tight, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { Scope } from './scope.js';

/**
 * A frozen weight as products read it, made when it is first used: by then all weights that are frozen with it are parked, and what is
 * packed lies close together.
 */
export interface CardBase extends FrozenBase {
  /** In e4m3, packed by the layers that are joined to read it; where they cannot be, products read the weight in bfloat16. */
  readonly isE4m3: boolean;
  holder: object | null;
  /** Of the weight: counts its packings. */
  version: number;
  /** In the type of products, but for e4m3; null before it is used, and in float32, where products read the weight. */
  matrix: Matrix | null;
  /** Gives its memory back, or its share of what it lies in. */
  release: () => void;
}

export function newCardBase(
  inFeatures: number,
  outFeatures: number,
  isE4m3: boolean,
  type: Matrix['type'],
): CardBase {
  // Codes for both directions take what bfloat16 takes.
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

/** The base of a layer by itself; null where products read the weight. */
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
