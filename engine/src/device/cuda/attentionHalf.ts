import type { AttentionGradients, AttentionHalf, AttentionShape, ForwardMode } from '../device.js';
import type { CardCache } from './cardCache.js';
import { Scope } from './cardMemory.js';
import { linearBackward, linearForward, type LinearPass, type LinearState } from './linear.js';
import {
  bytesOf,
  columnsOf,
  newMatrix,
  padded,
  tight,
  typeOf,
  type Arithmetic,
  type Matrix,
  type MatrixCalls,
} from './matrix.js';
import { normBackward, normForward } from './norm.js';

/** What the backward pass needs: queries and keys turned by their positions, and beside each other. */
export interface AttentionState {
  readonly scope: Scope;
  readonly rstd: number;
  readonly normed: Matrix;
  readonly heads: Heads;
  readonly mixed: Matrix;
  readonly logSumExp: number;
  readonly linear: Record<'q' | 'k' | 'v' | 'o', LinearState>;
}

interface Heads {
  /** [rows, q | k | v] */
  readonly all: Matrix;
  readonly q: Matrix;
  readonly k: Matrix;
  readonly v: Matrix;
}

export function attentionForward(
  calls: MatrixCalls,
  to: number,
  x: number,
  half: AttentionHalf,
  { precision, cache }: Pick<ForwardMode, 'precision' | 'cache'>,
  run: Arithmetic,
): AttentionState {
  const { batch, time, hidden, heads, kvHeads, headDim } = half.shape;
  const rows = batch * time;
  const pass: LinearPass = {
    arithmetic: precision === 'float32' ? 'float32' : run,
    isProbe: precision === 'float32',
    time,
  };
  const type = typeOf(pass.arithmetic);
  const [scope, temporary] = [new Scope(calls.memory), new Scope(calls.memory)];
  const normed = newMatrix(scope, rows, hidden, type);
  const rstd = scope.take(4 * rows);
  normForward(calls, normed, rstd, x, normOf(calls, half, rows));

  // The tiled kernel wants heads that begin at multiples of 16 bytes; the plain one, and the cache's, computes in float32.
  const isTiled = type === 'bf16' && headDim % 8 === 0 && cache === null;
  const made = newHeads(scope, rows, half.shape, isTiled ? 'bf16' : 'float');
  const through = (name: 'q' | 'k' | 'v') =>
    linearForward(calls, made[name], normed, half[name], null, pass, scope, temporary);
  const [q, k, v] = [through('q'), through('k'), through('v')];
  const keysAndValues = cache === null ? null : (cache.keysAndValues as CardCache);
  const firstPosition = keysAndValues?.length ?? 0;
  turn(calls, made.q, heads, half, firstPosition, 1);
  turn(calls, made.k, kvHeads, half, firstPosition, 1);

  const mixed = newMatrix(scope, rows, heads * headDim, made.all.type);
  const logSumExp = scope.take(4 * batch * heads * time);
  const keys = keysAndValues === null ? made : keysAndValues.append(calls, cache!.block, made.k, made.v);
  const ends = {
    ...{
      out: mixed.address,
      log_sum_exp: logSumExp,
      q: made.q.address,
      k: keys.k.address,
      v: keys.v.address,
    },
    ...{ queries: time, keys: firstPosition + time, heads, group: heads / kvHeads },
    ...{ q_stride: made.q.stride, kv_stride: keys.k.stride, out_stride: mixed.stride },
    scale: 1 / Math.sqrt(headDim),
  };
  calls.launch(
    isTiled
      ? {
          file: 'attention',
          kernel: 'attention_forward',
          definitions: [`HEAD_DIM=${headDim}`],
          grid: [Math.ceil(time / 64), heads, batch],
          dynamicSharedBytes: 5 * tileBytes(64, headDim),
          parameters: ends,
        }
      : {
          file: 'attention_float',
          kernel: 'attention_float_forward',
          grid: [Math.ceil(time / 4), heads, batch],
          parameters: { ...ends, dim: headDim },
        },
  );

  const residual = tight(x, rows, hidden);
  const o = linearForward(
    calls,
    tight(to, rows, hidden),
    calls.as(type, mixed, temporary),
    half.o,
    residual,
    pass,
    scope,
    temporary,
  );
  temporary.end();
  return { scope, rstd, normed, heads: made, mixed, logSumExp, linear: { q, k, v, o } };
}

export function attentionBackward(
  calls: MatrixCalls,
  gradients: AttentionGradients,
  dy: number,
  x: number,
  half: AttentionHalf,
  state: AttentionState,
  arithmetic: Arithmetic,
): void {
  const { batch, time, hidden, heads, kvHeads, headDim } = half.shape;
  const rows = batch * time;
  const { memory } = calls;
  const { normed, heads: made, mixed, logSumExp, linear, rstd } = state;
  const pass: LinearPass = { arithmetic, isProbe: false, time };
  const type = typeOf(arithmetic);
  const temporary = new Scope(memory);
  const upstream = calls.as(type, tight(dy, rows, hidden), temporary);

  const dmixed = newMatrix(temporary, rows, heads * headDim, mixed.type);
  const mixedOperand = calls.as(type, mixed, temporary);
  linearBackward(
    calls,
    dmixed,
    false,
    gradients.o,
    upstream,
    mixedOperand,
    half.o,
    linear.o,
    pass,
    temporary,
  );

  const d = newHeads(temporary, rows, half.shape, made.all.type);
  const delta = temporary.take(4 * batch * heads * time);
  const ends = {
    ...{ dq: d.q.address, dk: d.k.address, dv: d.v.address, delta },
    ...{ q: made.q.address, k: made.k.address, v: made.v.address },
    ...{ dout: dmixed.address, log_sum_exp: logSumExp, time, heads, group: heads / kvHeads },
    ...{ out_stride: mixed.stride, scale: 1 / Math.sqrt(headDim) },
  };
  if (made.all.type === 'bf16') {
    const definitions = [`HEAD_DIM=${headDim}`];
    calls.launch({
      file: 'attention',
      kernel: 'attention_delta',
      definitions,
      grid: [Math.ceil((rows * heads) / 8)],
      parameters: {
        ...{ delta, out: mixed.address, dout: dmixed.address, rows, time, heads, out_stride: mixed.stride },
      },
    });
    const parameters = { ...ends, stride: made.all.stride };
    calls.launch({
      file: 'attention',
      kernel: 'attention_backward_q',
      definitions,
      grid: [Math.ceil(time / 64), heads, batch],
      dynamicSharedBytes: 4 * tileBytes(64, headDim),
      parameters,
    });
    calls.launch({
      file: 'attention',
      kernel: 'attention_backward_kv',
      definitions,
      grid: [Math.ceil(time / 64), kvHeads, batch],
      dynamicSharedBytes: 2 * tileBytes(64, headDim) + 2 * tileBytes(32, headDim) + 2 * 32 * 4,
      parameters,
    });
  } else {
    const strides = { q_stride: made.q.stride, kv_stride: made.k.stride };
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
  turn(calls, d.q, heads, half, 0, -1);
  turn(calls, d.k, kvHeads, half, 0, -1);

  const dn = tight(temporary.take(4 * rows * hidden), rows, hidden);
  const back = (name: 'q' | 'k' | 'v', adds: boolean) => {
    const part = calls.as(type, d[name], temporary);
    linearBackward(calls, dn, adds, gradients[name], part, normed, half[name], linear[name], pass, temporary);
  };
  back('q', false);
  back('k', true);
  back('v', true);
  const into = {
    dx: memory.floats(gradients.dx, rows * hidden, 'attentionHalfBackward: dx'),
    gain: memory.floats(gradients.gain, hidden, 'attentionHalfBackward: gain'),
  };
  normBackward(calls, into, dn, x, rstd, dy, normOf(calls, half, rows), temporary);
  temporary.end();
  state.scope.end();
}

function newHeads(scope: Scope, rows: number, shape: AttentionShape, type: Matrix['type']): Heads {
  const [width, keyWidth] = [shape.heads * shape.headDim, shape.kvHeads * shape.headDim];
  const all = newMatrix(scope, rows, padded(width) + 2 * padded(keyWidth), type);
  const k = padded(width);
  return {
    all,
    q: columnsOf(all, 0, width),
    k: columnsOf(all, k, keyWidth),
    v: columnsOf(all, k + padded(keyWidth), keyWidth),
  };
}

/** Turns heads by their positions, in place. */
function turn(
  calls: MatrixCalls,
  of: Matrix,
  heads: number,
  { shape: { time, headDim }, angles }: AttentionHalf,
  firstPosition: number,
  sign: 1 | -1,
): void {
  const length = (angles.positionCount * headDim) / 2;
  calls.launch(
    {
      file: 'rotary',
      kernel: 'rotary',
      grid: [Math.ceil((of.rows * heads * headDim) / 2 / 256)],
      parameters: {
        ...{ x: of.address, rows: of.rows, heads, head_dim: headDim, stride: of.stride, time },
        cosines: calls.memory.floats(angles.cos, length, 'angles.cos'),
        sines: calls.memory.floats(angles.sin, length, 'angles.sin'),
        ...{ first_position: firstPosition, sign },
      },
    },
    of.type,
  );
}

function normOf(calls: MatrixCalls, { gain, epsilon, shape: { hidden } }: AttentionHalf, rows: number) {
  return { rows, hidden, epsilon, gain: calls.memory.floats(gain, hidden, 'attentionHalf: gain') };
}

/** Of a head's rows in shared memory, as attention.cu pads them. */
const tileBytes = (rows: number, dim: number) => rows * (Math.ceil(dim / 16) * 16 + 8) * bytesOf.bf16;
