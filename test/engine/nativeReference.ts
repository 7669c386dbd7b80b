/** Float64 references for the native kernels, written like the formulas. */

/** The largest relative error of rounding to float32. */
export const epsilon = 2 ** -24;
/** The same for bfloat16. */
export const halfEpsilon = 2 ** -8;

/** Numbers in [-1, 1), the same on every run. */
export function seededArray(length: number, seed: number, scale = 1): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * scale;
  });
}

/** Nearest bfloat16, ties to even. */
export function roundToBfloat16(values: Float32Array): Float32Array {
  const words = new Uint32Array(values.slice().buffer);
  return new Float32Array(words.map((word) => (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000).buffer);
}

export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  at(row: number, column: number): number;
}

export function matrix(data: ArrayLike<number>, rows: number, columns: number, isTransposed = false): Matrix {
  return { rows, columns, at: (i, j) => data[isTransposed ? j * rows + i : i * columns + j]! };
}

export function transposed({ rows, columns, at }: Matrix): Matrix {
  return { rows: columns, columns: rows, at: (i, j) => at(j, i) };
}

/** The product, and the sum of the absolute values of its terms, to which rounding errors are proportional. */
export function multiply(a: Matrix, b: Matrix): { value: Float64Array; magnitude: Float64Array } {
  const value = new Float64Array(a.rows * b.columns);
  const magnitude = new Float64Array(a.rows * b.columns);
  for (let i = 0; i < a.rows; i++) {
    for (let k = 0; k < a.columns; k++) {
      const left = a.at(i, k);
      for (let j = 0; j < b.columns; j++) {
        const term = left * b.at(k, j);
        value[i * b.columns + j]! += term;
        magnitude[i * b.columns + j]! += Math.abs(term);
      }
    }
  }
  return { value, magnitude };
}

/** Largest |actual - expected| - tolerance; the arrays agree if it is not positive. NaN counts as infinite. */
export function excess(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: (index: number) => number,
): number {
  if (actual.length !== expected.length) return Infinity;
  let worst = -Infinity;
  for (let i = 0; i < actual.length; i++) {
    const over = Math.abs(actual[i]! - expected[i]!) - tolerance(i);
    worst = Math.max(worst, Number.isNaN(over) ? Infinity : over);
  }
  return worst;
}

export function largest(values: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < values.length; i++) most = Math.max(most, Math.abs(values[i]!));
  return most;
}

/** y = x rstd gain, rstd = 1 / sqrt(mean(x²) + added), and its gradients; sizes are sums of the absolute values of terms. */
export function rmsNorm(
  x: ArrayLike<number>,
  gain: ArrayLike<number>,
  dy: ArrayLike<number>,
  rows: number,
  dim: number,
  added: number,
) {
  const [y, dx, dxSize] = [0, 1, 2].map(() => new Float64Array(rows * dim)) as Float64Array[];
  const [dgain, dgainSize] = [new Float64Array(dim), new Float64Array(dim)];
  const rstd = new Float64Array(rows);
  for (let from = 0; from < rows * dim; from += dim) {
    let squares = 0;
    for (let i = 0; i < dim; i++) squares += x[from + i]! ** 2;
    const r = 1 / Math.sqrt(squares / dim + added);
    rstd[from / dim] = r;
    let [along, size] = [0, 0];
    for (let i = 0; i < dim; i++) {
      const term = (dy[from + i]! * gain[i]! * x[from + i]! * r * r) / dim;
      along += term;
      size += Math.abs(term);
    }
    for (let i = 0; i < dim; i++) {
      const [value, upstream] = [x[from + i]!, dy[from + i]! * gain[i]!];
      y![from + i] = value * r * gain[i]!;
      dx![from + i] = r * (upstream - value * along);
      dxSize![from + i] = r * (Math.abs(upstream) + Math.abs(value) * size);
      dgain[i]! += dy[from + i]! * value * r;
      dgainSize[i]! += Math.abs(dy[from + i]! * value * r);
    }
  }
  return { y: y!, rstd, dx: dx!, dxSize: dxSize!, dgain, dgainSize };
}

export interface AttentionShape {
  documents: Int32Array | null;
  batch: number;
  time: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  scale: number;
}

/** Causal attention and its gradients for one upstream gradient. */
export function attention(
  shape: AttentionShape,
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  dout: ArrayLike<number>,
) {
  const { batch, time, heads, kvHeads, headDim, scale, documents } = shape;
  const out = new Float64Array(q.length);
  const logSumExp = new Float64Array(batch * heads * time);
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const keyHead = Math.floor((h * kvHeads) / heads);
      const queryAt = (t: number) => ((b * time + t) * heads + h) * headDim;
      const keyAt = (t: number) => ((b * time + t) * kvHeads + keyHead) * headDim;
      const dot = (x: ArrayLike<number>, i: number, y: ArrayLike<number>, j: number) => {
        let sum = 0;
        for (let d = 0; d < headDim; d++) sum += x[i + d]! * y[j + d]!;
        return sum;
      };
      for (let t = 0; t < time; t++) {
        const begin = documents?.[b * time + t] ?? 0;
        const scores = Array.from({ length: t + 1 }, (_, s) =>
          s < begin ? -Infinity : scale * dot(q, queryAt(t), k, keyAt(s)),
        );
        const most = Math.max(...scores);
        const sum = scores.reduce((total, score) => total + Math.exp(score - most), 0);
        logSumExp[(b * heads + h) * time + t] = most + Math.log(sum);
        const p = scores.map((score) => Math.exp(score - most) / sum);
        for (let s = 0; s <= t; s++) {
          for (let d = 0; d < headDim; d++) out[queryAt(t) + d]! += p[s]! * v[keyAt(s) + d]!;
        }
        const along = dot(dout, queryAt(t), out, queryAt(t));
        for (let s = 0; s <= t; s++) {
          const dscore = p[s]! * (dot(dout, queryAt(t), v, keyAt(s)) - along) * scale;
          for (let d = 0; d < headDim; d++) {
            dq[queryAt(t) + d]! += dscore * k[keyAt(s) + d]!;
            dk[keyAt(s) + d]! += dscore * q[queryAt(t) + d]!;
            dv[keyAt(s) + d]! += p[s]! * dout[queryAt(t) + d]!;
          }
        }
      }
    }
  }
  return { out, logSumExp, dq, dk, dv };
}

/** Losses of logits = x headᵀ, and gradients of gradientScale * sum(losses). */
export function headCrossEntropy(
  x: Float32Array,
  head: Float32Array,
  targets: Int32Array,
  rows: number,
  dim: number,
  vocabulary: number,
  gradientScale: number,
) {
  const losses = new Float64Array(rows);
  const dx = new Float64Array(rows * dim);
  const dhead = new Float64Array(vocabulary * dim);
  const logits = multiply(matrix(x, rows, dim), matrix(head, dim, vocabulary, true)).value;
  for (let i = 0; i < rows; i++) {
    const target = targets[i]!;
    if (target < 0) continue;
    const row = logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
    const sum = row.reduce((total, logit) => total + Math.exp(logit - most), 0);
    losses[i] = most + Math.log(sum) - row[target]!;
    for (let j = 0; j < vocabulary; j++) {
      const dlogit = gradientScale * (Math.exp(row[j]! - most) / sum - (j === target ? 1 : 0));
      for (let d = 0; d < dim; d++) {
        dx[i * dim + d]! += dlogit * head[j * dim + d]!;
        dhead[j * dim + d]! += dlogit * x[i * dim + d]!;
      }
    }
  }
  return { losses, dx, dhead };
}
