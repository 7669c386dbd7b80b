import type { DeviceBuffer, Dropout, FrozenBase, Layer, LayerAdapter, LayerGradients } from '../device.js';
import { dropoutMask } from '../dropout.js';
import type { Scope } from './cardMemory.js';
import { newMatrix, tight, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** A frozen weight as products read it; null in float32, where they read the weight. */
export interface CardBase extends FrozenBase {
  /** In e4m3, packed by the layers that are joined to read it; where they cannot be, products read the weight in bfloat16. */
  readonly isE4m3: boolean;
  holder: object | null;
  /** Of the weight: counts its packings. */
  version: number;
  /** In the type of products, but for e4m3. */
  matrix: Matrix | null;
  /** Gives its memory back, or its share of what it lies in. */
  release: () => void;
}

/** What the backward pass of a layer needs beside its input. */
export interface LinearState {
  /** Of an adapter with a path of its own: its input where it was dropped out, and x A. */
  readonly mask: number | null;
  readonly dropped: Matrix | null;
  readonly xa: Matrix | null;
}

export interface LinearPass {
  readonly arithmetic: Arithmetic;
  /** A forward pass in float32 from the float32 weights: the adapter has a path of its own whatever its graph is. */
  readonly isProbe: boolean;
  /** Positions of a sequence, for dropout. */
  readonly time: number;
}

/** to[rows, out] = the layer of x[rows, in] + addend, rounded once. x has the type of the arithmetic. */
export function linearForward(
  calls: MatrixCalls,
  to: Matrix,
  x: Matrix,
  layer: Layer,
  addend: Matrix | null,
  pass: LinearPass,
  kept: Scope,
  temporary: Scope,
): LinearState {
  const { memory } = calls;
  const { adapter, outFeatures } = layer;
  const weight = weightOf(calls, layer, pass, temporary);
  const bias = layer.bias === null ? null : memory.floats(layer.bias, outFeatures, `${layer.name}.bias`);
  let state: LinearState = { mask: null, dropped: null, xa: null };
  let sum = addend;
  if (adapter !== null && (pass.isProbe || adapter.graph === 'separate')) {
    state = throughAdapter(calls, x, layer, adapter, pass, kept);
    // The path first: everything is added up in float32 and rounded once.
    sum = tight(temporary.take(4 * x.rows * outFeatures), x.rows, outFeatures);
    const b = factorB(calls, layer, adapter, pass, temporary);
    calls.product(sum, state.xa!, b, { ...scaleOf(calls, adapter, temporary), addend });
  }
  calls.product(to, x, weight, { addend: sum, bias });
  return state;
}

/** dy Bᵀ of an adapter, made once for both calls below; null without one. */
export type LinearBack = Matrix | null;

/** dx, of floats or of the type of products, is written or, of floats, added to. */
export function linearInputGradient(
  calls: MatrixCalls,
  dx: Matrix,
  adds: boolean,
  dy: Matrix,
  layer: Layer,
  state: LinearState,
  pass: LinearPass,
  temporary: Scope,
): LinearBack {
  const { adapter, inFeatures } = layer;
  const { rows } = dy;
  const weight = weightOf(calls, layer, pass, temporary);
  const dp = adapter && newMatrix(temporary, rows, adapter.rank, dy.type);
  if (dp !== null)
    calls.product(dp, dy, factorB(calls, layer, adapter!, pass, temporary), { transposeB: true });
  if (dp === null || adapter?.graph !== 'separate') {
    calls.product(dx, dy, weight, { transposeB: true, adds });
    return dp;
  }
  // Two parts are added up, in float32.
  const sum = dx.type === 'float' ? dx : tight(temporary.take(4 * rows * inFeatures), rows, inFeatures);
  calls.product(sum, dy, weight, { transposeB: true, adds });
  const a = factorA(calls, layer, adapter, pass, temporary);
  const scale = scaleOf(calls, adapter, temporary);
  if (state.mask === null) calls.product(sum, dp, a, { transposeB: true, adds: true, ...scale });
  else {
    const through = tight(temporary.take(4 * rows * inFeatures), rows, inFeatures);
    calls.product(through, dp, a, { transposeB: true, ...scale });
    calls.launch(
      {
        file: 'elementwise',
        kernel: 'add_masked',
        grid: [Math.ceil((rows * inFeatures) / 256)],
        parameters: {
          ...{ to: sum.address, from: through.address, mask: state.mask },
          ...{ rows, columns: inFeatures, to_stride: sum.stride },
        },
      },
      'float',
    );
  }
  if (sum !== dx) calls.copy(dx, sum);
  return dp;
}

/** Gradients of a layer that are wanted are written; x is what went into it. */
export function linearGradients(
  calls: MatrixCalls,
  gradients: LayerGradients,
  dy: Matrix,
  x: Matrix,
  layer: Layer,
  state: LinearState,
  dp: LinearBack,
  pass: LinearPass,
  temporary: Scope,
): void {
  const { memory } = calls;
  const { adapter, inFeatures, outFeatures, name } = layer;
  const { rows } = x;
  if (gradients.bias !== null)
    calls.sumColumns(memory.floats(gradients.bias, outFeatures, `${name}.bias`), dy, temporary);
  if (gradients.weight !== null) {
    const to = memory.floats(gradients.weight, inFeatures * outFeatures, `${name}.weight`);
    calls.product(tight(to, inFeatures, outFeatures), x, dy, { transposeA: true });
  }
  if (adapter === null || dp === null) return;
  const { rank } = adapter;
  const scale = scaleOf(calls, adapter, temporary);
  let xa = state.xa;
  if (xa === null) {
    xa = newMatrix(temporary, rows, rank, x.type);
    calls.product(xa, x, factorA(calls, layer, adapter, pass, temporary));
  }
  if (gradients.b !== null) {
    const to = memory.floats(gradients.b, rank * outFeatures, `${name}.b`);
    calls.product(tight(to, rank, outFeatures), xa, dy, { transposeA: true, ...scale });
  }
  if (gradients.a !== null) {
    const to = memory.floats(gradients.a, inFeatures * rank, `${name}.a`);
    calls.product(tight(to, inFeatures, rank), state.dropped ?? x, dp, { transposeA: true, ...scale });
  }
  if (gradients.scale !== null)
    calls.launch(
      {
        file: 'elementwise',
        kernel: 'scale_gradient',
        grid: [1],
        parameters: {
          ...{ dg: memory.floats(gradients.scale, 1, `${name}.scale`), dp: dp.address, xa: xa.address },
          ...{ factor: scale.factor!, rows, rank, stride: dp.stride },
        },
      },
      dp.type,
    );
}

function throughAdapter(
  calls: MatrixCalls,
  x: Matrix,
  layer: Layer,
  adapter: LayerAdapter,
  pass: LinearPass,
  kept: Scope,
): LinearState {
  const { rank, dropout } = adapter;
  const a = factorA(calls, layer, adapter, pass, kept);
  const xa = newMatrix(kept, x.rows, rank, x.type);
  if (dropout === null) {
    calls.product(xa, x, a);
    return { mask: null, dropped: null, xa };
  }
  const mask = maskOf(calls, x, dropout, layer, pass, kept);
  const dropped = newMatrix(kept, x.rows, x.columns, x.type);
  calls.launch(
    {
      file: 'elementwise',
      kernel: 'multiply_mask',
      grid: [Math.ceil((x.rows * x.columns) / 256)],
      parameters: {
        ...{ to: dropped.address, from: x.address, mask, rows: x.rows, columns: x.columns },
        ...{ to_stride: dropped.stride, from_stride: x.stride },
      },
    },
    x.type,
  );
  calls.product(xa, dropped, a);
  return { mask, dropped, xa };
}

/** Version 1 is drawn in one order, on the host; version 2 is counted, here. */
function maskOf(
  calls: MatrixCalls,
  x: Matrix,
  dropout: Dropout,
  layer: Layer,
  pass: LinearPass,
  kept: Scope,
): number {
  const length = x.rows * x.columns;
  const mask = kept.take(4 * length);
  if (dropout.version === 1) {
    const drawn = new Float32Array(length);
    dropoutMask(drawn, dropout, layer, pass.time);
    calls.memory.card.upload(mask, drawn);
    return mask;
  }
  const sequenceLength = pass.time * x.columns;
  const threads = Math.ceil(sequenceLength / 4) * (length / sequenceLength);
  calls.launch(
    {
      file: 'elementwise',
      kernel: 'dropout_mask',
      grid: [Math.ceil(threads / 256)],
      parameters: {
        ...{ mask, length, sequence_length: sequenceLength, first_sequence: dropout.firstSequence >>> 0 },
        ...{ step: dropout.step >>> 0, layer: layer.index >>> 0 },
        ...{ key_low: dropout.seed >>> 0, key_high: Math.floor(dropout.seed / 2 ** 32) >>> 0 },
        ...{ threshold: Math.ceil(dropout.share * 2 ** 32), kept: 1 / (1 - dropout.share) },
      },
    },
    'float',
  );
  return mask;
}

/** A constant, or the address of tanh(g). */
function scaleOf(
  calls: MatrixCalls,
  { scale }: LayerAdapter,
  temporary: Scope,
): { scale: number; factor: number | null } {
  if (typeof scale === 'number') return { scale, factor: null };
  const factor = temporary.take(4);
  calls.launch(
    {
      file: 'elementwise',
      kernel: 'adapter_scale',
      grid: [1],
      parameters: { factor, g: calls.memory.floats(scale, 1, 'scale') },
    },
    'float',
  );
  return { scale: 1, factor };
}

/** Floats of a parameter as products read them. */
function operand(
  calls: MatrixCalls,
  of: DeviceBuffer,
  [rows, columns]: readonly [rows: number, columns: number],
  { arithmetic }: Pick<LinearPass, 'arithmetic'>,
  field: string,
  scope: Scope,
): Matrix {
  if (arithmetic !== 'float32') return calls.half(of, rows, columns, field);
  return tight(calls.memory.stagedFloats(of, rows * columns, field, scope), rows, columns);
}

function factorA(
  calls: MatrixCalls,
  { inFeatures, name }: Layer,
  { a, rank }: LayerAdapter,
  pass: LinearPass,
  scope: Scope,
): Matrix {
  return operand(calls, a, [inFeatures, rank], pass, `${name}.a`, scope);
}

function factorB(
  calls: MatrixCalls,
  { outFeatures, name }: Layer,
  { b, rank }: LayerAdapter,
  pass: LinearPass,
  scope: Scope,
): Matrix {
  return operand(calls, b, [rank, outFeatures], pass, `${name}.b`, scope);
}

function weightOf(calls: MatrixCalls, layer: Layer, pass: LinearPass, temporary: Scope): Matrix {
  const { base, weight, inFeatures, outFeatures, name, adapter } = layer;
  const packed = pass.isProbe ? null : ((base as CardBase | null)?.matrix ?? null);
  if (packed === null) return operand(calls, weight, [inFeatures, outFeatures], pass, name, temporary);
  const isMerged = adapter !== null && adapter.graph !== 'separate' && packed.type === 'bf16';
  if (!isMerged) return packed; // in float32 `packMerged` has put the adapter into it
  const merged = newMatrix(temporary, inFeatures, outFeatures, 'bf16');
  const { scale } = scaleOf(calls, adapter, temporary);
  const [a, b] = [
    factorA(calls, layer, adapter, pass, temporary),
    factorB(calls, layer, adapter, pass, temporary),
  ];
  calls.product(merged, a, b, { scale, addend: packed });
  return merged;
}
