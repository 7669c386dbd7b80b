import type { Random } from '../random.js';
import { addScaled, dot, leadingRotation, randomVector } from './leadingDirections.js';

/** A column that keeps less than this fraction of its length after projection is rounding error. */
const independentMin = 1e-6;
/** Average norm of a column of a random A: its entries are uniform within 1/sqrt(in) (model/adapters.ts). */
const columnNorm = 1 / Math.sqrt(3);

/** Initial A of a cycle within the span of the last one. */
export interface SpanStart {
  /** [in, rank]: the first columns are old A times `turn`, the others are unchanged random columns. */
  a: Float32Array;
  /** [rank][kept]: the momentum of B is multiplied by turnᵀ. */
  turn: Float64Array[];
}

/** How the momentum of B changes in each layer, by layer name: `turn` of its start. */
export type Turns = ReadonlyMap<string, readonly Float64Array[]>;

/** The adapter at the end of its cycle. */
export interface OldAdapter {
  /** [in, rank] */
  a: Float32Array;
  /** [rank, out] */
  b: Float32Array;
  inFeatures: number;
  outFeatures: number;
  rank: number;
}

/**
 * Computes an A whose first `kept` columns are an orthogonal set in the span of the old one, ordered by how much A B used them; the other
 * columns are those of `drawn`. In float64 and sequential: bits depend on nothing else.
 */
export function spanStart(old: OldAdapter, drawn: Float32Array, kept: number, random: Random): SpanStart {
  const { a, b, inFeatures, outFeatures, rank } = old;
  const columns = Array.from({ length: rank }, (_, column) =>
    Float64Array.from({ length: inFeatures }, (_, row) => a[row * rank + column]!),
  );
  const { q, r } = decompose(columns, random);
  // A B = Q (R B): within the span the directions of A B are those of R B.
  const rows = Array.from({ length: rank }, (_, row) =>
    Float64Array.from(b.subarray(row * outFeatures, (row + 1) * outFeatures)),
  );
  const inSpan = r.map((line) => {
    const sum = new Float64Array(outFeatures);
    line.forEach((weight, index) => addScaled(sum, rows[index]!, weight));
    return sum;
  });
  const rotation = leadingRotation(
    inSpan.map((one) => Float64Array.from(inSpan, (other) => dot(one, other))),
  ).slice(0, kept);

  const next = drawn.slice();
  rotation.forEach((weights, column) => {
    const mixed = new Float64Array(inFeatures);
    weights.forEach((weight, index) => addScaled(mixed, q[index]!, columnNorm * weight));
    for (let row = 0; row < inFeatures; row++) next[row * rank + column] = mixed[row]!;
  });
  const solved = rotation.map((weights) => solveUpper(r, weights));
  const turn = Array.from({ length: rank }, (_, row) =>
    Float64Array.from(solved, (column) => columnNorm * column[row]!),
  );
  return { a: next, turn };
}

/** turnᵀ times a matrix shaped like B, in the first `kept` rows; the other rows are zero. */
export function turned(values: Float32Array, turn: readonly Float64Array[], rank: number): Float32Array {
  const width = values.length / rank;
  const next = new Float32Array(values.length);
  const kept = turn[0]?.length ?? 0;
  const sum = new Float64Array(width);
  for (let column = 0; column < kept; column++) {
    sum.fill(0);
    turn.forEach((weights, row) => {
      const weight = weights[column]!;
      for (let i = 0; i < width; i++) sum[i]! += weight * values[row * width + i]!;
    });
    next.set(sum, column * width);
  }
  return next;
}

/**
 * Columns = Q R with Q orthogonal up to rounding: modified Gram-Schmidt, twice. A linearly dependent column is replaced by a random one,
 * with 0 on R's diagonal.
 */
function decompose(columns: Float64Array[], random: Random): { q: Float64Array[]; r: Float64Array[] } {
  const count = columns.length;
  const r = Array.from({ length: count }, () => new Float64Array(count));
  const q: Float64Array[] = [];
  columns.forEach((column, index) => {
    const vector = column.slice();
    const before = Math.sqrt(dot(column, column));
    for (let pass = 0; pass < 2; pass++)
      removeFrom(vector, q, (other, share) => (r[other]![index]! += share));
    let norm = Math.sqrt(dot(vector, vector));
    if (norm > independentMin * before && norm > 0) r[index]![index] = norm;
    else {
      vector.set(randomVector(vector.length, random));
      for (let pass = 0; pass < 2; pass++) removeFrom(vector, q, () => {});
      norm = Math.sqrt(dot(vector, vector));
    }
    for (let i = 0; i < vector.length; i++) vector[i]! /= norm;
    q.push(vector);
  });
  return { q, r };
}

function removeFrom(
  vector: Float64Array,
  others: readonly Float64Array[],
  taken: (other: number, share: number) => void,
): void {
  others.forEach((other, index) => {
    const share = dot(vector, other);
    addScaled(vector, other, -share);
    taken(index, share);
  });
}

/** Solves R x = y with R upper triangular; where R's diagonal is 0, x is 0. */
function solveUpper(r: readonly Float64Array[], y: Float64Array): Float64Array {
  const x = new Float64Array(y.length);
  for (let row = y.length - 1; row >= 0; row--) {
    const pivot = r[row]![row]!;
    if (pivot === 0) continue;
    let sum = y[row]!;
    for (let column = row + 1; column < y.length; column++) sum -= r[row]![column]! * x[column]!;
    x[row] = sum / pivot;
  }
  return x;
}
