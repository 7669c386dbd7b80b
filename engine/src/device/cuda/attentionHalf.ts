import type { AttentionHalf, AttentionShape, ForwardMode, HeadNorms } from '../device.js';
import type { CardCache } from './cardCache.js';
import { addressesOf } from './cardDocuments.js';
import type { Scope } from './scope.js';
import type { HalfParts, Middle, MiddleState } from './half.js';
import { headNormBackward, headNormForward } from './headNorm.js';
import { bytesOf, columnsOf, newMatrix, widthOf, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** A half with attention between its layers: q, k and v are adjacent columns of one matrix. */
export function attentionParts(
  calls: MatrixCalls,
  half: AttentionHalf,
  cache: ForwardMode['cache'] = null,
  /** Gradients of the head norms, for the backward pass. */
  gradients: HeadNorms | null = null,
): HalfParts {
  const { shape, gain, epsilon, q, k, v, o } = half;
  const { batch, time, hidden } = shape;
  const common = { rows: batch * time, time, hidden, gain, epsilon };
  return { ...common, first: [q, k, v], last: o, middle: new Attention(calls, half, cache, gradients) };
}

class Attention implements Middle {
  private readonly shape: AttentionShape;

  constructor(
    private readonly calls: MatrixCalls,
    private readonly half: AttentionHalf,
    private readonly cache: ForwardMode['cache'],
    private readonly gradients: HeadNorms | null,
  ) {
    this.shape = half.shape;
  }

  innerWidth(): number {
    return this.shape.heads * this.shape.headDim;
  }

  /** The tiled kernel needs heads at multiples of 16 bytes; the plain kernel, and the one for a cache, compute in float32. */
  typeOfMade(type: Matrix['type']): Matrix['type'] {
    return type === 'bf16' && this.shape.headDim % 8 === 0 && this.cache === null ? 'bf16' : 'float';
  }

  forward(made: Matrix, innerWidth: number, kept: Scope): { inner: Matrix; state: MiddleState } {
    const { calls, shape } = this;
    const { batch, time, heads, kvHeads, headDim } = shape;
    const keysAndValues = this.cache === null ? null : (this.cache.keysAndValues as CardCache);
    const firstPosition = keysAndValues?.length ?? 0;
    const { q, k, v } = this.headsOf(made);
    const norms = this.half.headNorms;
    const normed = (of: 'q' | 'k', x: Matrix) =>
      headNormForward(calls, x, norms![of], { headDim, epsilon: this.half.epsilon }, kept);
    const before = norms && { q: normed('q', q), k: normed('k', k) };
    this.turn(made, firstPosition, 1);
    const mixed = newMatrix(kept, made.rows, innerWidth, made.type);
    const logSumExp = kept.take(4 * batch * heads * time);
    const keys = keysAndValues === null ? { k, v } : keysAndValues.append(calls, this.cache!.block, k, v);
    const parameters = {
      ...{ out: mixed.address, log_sum_exp: logSumExp },
      ...{ q: q.address, k: keys.k.address, v: keys.v.address },
      ...{ queries: time, keys: firstPosition + time, heads, group: heads / kvHeads },
      ...{ q_stride: q.stride, kv_stride: keys.k.stride, out_stride: mixed.stride },
      ...{ begins: addressesOf(this.half.documents).begins, scale: 1 / Math.sqrt(headDim) },
    };
    if (made.type === 'bf16')
      calls.launch({
        ...{ file: 'attention', kernel: 'attention_forward', definitions: [`HEAD_DIM=${headDim}`] },
        grid: [Math.ceil(time / 64), heads, batch],
        dynamicSharedBytes: 5 * tileBytes(64, headDim),
        parameters,
      });
    else
      calls.launch({
        ...{ file: 'attention_float', kernel: 'attention_float_forward' },
        grid: [Math.ceil(time / 4), heads, batch],
        parameters: { ...parameters, dim: headDim },
      });
    return { inner: mixed, state: { mixed, logSumExp, heads: before } };
  }

  backward(
    made: Matrix,
    dmixed: Matrix,
    { mixed, logSumExp, heads: before }: MiddleState,
    temporary: Scope,
  ): { dmade: Matrix; inner: Matrix } {
    const { calls, shape } = this;
    const { batch, time, heads, kvHeads, headDim } = shape;
    const dmade = newMatrix(temporary, made.rows, made.columns, made.type);
    const [of, d] = [this.headsOf(made), this.headsOf(dmade)];
    // Nothing else writes the padding between queries, keys and values.
    if (d.q.columns + 2 * d.k.columns !== dmade.columns)
      calls.memory.card.fill(dmade.address, 0, bytesOf[dmade.type] * dmade.rows * dmade.stride);
    const delta = temporary.take(4 * batch * heads * time);
    const ends = {
      ...{ dq: d.q.address, dk: d.k.address, dv: d.v.address, delta },
      ...{ q: of.q.address, k: of.k.address, v: of.v.address },
      ...{ dout: dmixed.address, log_sum_exp: logSumExp, time, heads, group: heads / kvHeads },
      ...{ out_stride: mixed.stride, ...addressesOf(this.half.documents), scale: 1 / Math.sqrt(headDim) },
    };
    if (made.type === 'bf16') this.tiledBackward(made, mixed, dmixed, delta, ends);
    else {
      const strides = { q_stride: of.q.stride, kv_stride: of.k.stride };
      const parameters = { ...ends, ...strides, out: mixed.address, dim: headDim };
      const launch = (kernel: string, count: number) =>
        calls.launch({
          file: 'attention_float',
          kernel,
          grid: [Math.ceil(time / 4), count, batch],
          parameters,
        });
      launch('attention_float_backward_q', heads);
      launch('attention_float_backward_kv', kvHeads);
    }
    this.turn(dmade, 0, -1);
    const { headNorms, epsilon } = this.half;
    if (before !== null)
      for (const name of ['q', 'k'] as const) {
        const into = { d: d[name], gain: this.gradients![name] };
        headNormBackward(calls, into, before[name], headNorms![name], { headDim, epsilon }, temporary);
      }
    return { dmade, inner: mixed };
  }

  private tiledBackward(
    made: Matrix,
    mixed: Matrix,
    dmixed: Matrix,
    delta: number,
    ends: Readonly<Record<string, number>>,
  ): void {
    const { calls } = this;
    const { batch, time, heads, kvHeads, headDim } = this.shape;
    const [file, definitions] = ['attention', [`HEAD_DIM=${headDim}`]];
    const { rows } = made;
    calls.launch({
      ...{ file, kernel: 'attention_delta', definitions, grid: [Math.ceil((rows * heads) / 8)] },
      parameters: {
        ...{ delta, out: mixed.address, dout: dmixed.address, rows, time, heads, out_stride: mixed.stride },
      },
    });
    const parameters = { ...ends, stride: made.stride };
    calls.launch({
      ...{ file, kernel: 'attention_backward_q', definitions, grid: [Math.ceil(time / 64), heads, batch] },
      dynamicSharedBytes: 4 * tileBytes(64, headDim),
      parameters,
    });
    calls.launch({
      ...{ file, kernel: 'attention_backward_kv', definitions, grid: [Math.ceil(time / 64), kvHeads, batch] },
      dynamicSharedBytes: 2 * tileBytes(64, headDim) + 2 * tileBytes(32, headDim) + 2 * 32 * 4,
      parameters,
    });
  }

  private headsOf(all: Matrix): { q: Matrix; k: Matrix; v: Matrix } {
    const { heads, kvHeads, headDim } = this.shape;
    const [width, keyWidth] = [heads * headDim, kvHeads * headDim];
    const k = widthOf(width);
    return {
      q: columnsOf(all, 0, width),
      k: columnsOf(all, k, keyWidth),
      v: columnsOf(all, k + widthOf(keyWidth), keyWidth),
    };
  }

  /** Rotates queries and keys by their positions, in place: in one launch if the keys directly follow the queries. */
  private turn(made: Matrix, firstPosition: number, sign: 1 | -1): void {
    const { calls } = this;
    const { time, heads, kvHeads, headDim } = this.shape;
    const { angles, documents } = this.half;
    if (angles === null) return;
    const { q, k } = this.headsOf(made);
    const length = (angles.positionCount * headDim) / 2;
    const isOne = k.address === q.address + heads * headDim * bytesOf[q.type];
    const launch = (of: Matrix, count: number) =>
      calls.launch(
        {
          ...{
            file: 'rotary',
            kernel: 'rotary',
            grid: [Math.ceil((of.rows * count * headDim) / 2 / 256)] as const,
          },
          parameters: {
            ...{ x: of.address, rows: of.rows, heads: count, head_dim: headDim, stride: of.stride, time },
            cosines: calls.memory.floats(angles.cos, length, 'angles.cos'),
            sines: calls.memory.floats(angles.sin, length, 'angles.sin'),
            ...{ begins: addressesOf(documents).begins, first_position: firstPosition, sign },
          },
        },
        of.type,
      );
    launch(q, isOne ? heads + kvHeads : heads);
    if (!isOne) launch(k, kvHeads);
  }
}

/** Shared memory in bytes for the rows of a head, padded as in attention.cu. */
const tileBytes = (rows: number, dim: number) => rows * (Math.ceil(dim / 16) * 16 + 8) * bytesOf.bf16;
