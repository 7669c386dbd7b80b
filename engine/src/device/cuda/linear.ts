import type { Layer, LayerAdapter, LayerGradients } from '../device.js';
import { maskOf } from './layerMask.js';
import { factorA, factorB, scaleOf, weightOf } from './layerOperands.js';
import { newMatrix, tight, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { Scope } from './scope.js';

/** State for the backward pass of a layer, besides its input. */
export interface LinearState {
  /** For an adapter with a separate path: the dropout mask of its input, and x A. */
  readonly mask: number | null;
  readonly dropped: Matrix | null;
  readonly xa: Matrix | null;
}

export interface LinearPass {
  readonly arithmetic: Arithmetic;
  /** A forward pass in float32 from the float32 weights: the adapter has a separate path whatever its graph is. */
  readonly isProbe: boolean;
  /** Positions per sequence, for dropout. */
  readonly time: number;
}

/** to[rows, out] = the layer of x[rows, in] + addend, rounded once. x has the type of products. */
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
    // The adapter path first: everything is summed in float32 and rounded once.
    sum = tight(temporary.take(4 * x.rows * outFeatures), x.rows, outFeatures);
    const b = factorB(calls, layer, adapter, pass, temporary);
    calls.product(sum, state.xa!, b, { ...scaleOf(calls, adapter, temporary), addend });
  }
  calls.product(to, x, weight, { addend: sum, bias });
  return state;
}

/** dy Bᵀ of an adapter, computed once for both calls below; null without an adapter. */
export type LinearBack = Matrix | null;

/** dx, in float32 or the type of products, is overwritten or, in float32, added to. */
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
  // Two terms are summed, in float32.
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

/** Writes the requested gradients of a layer; x is its input. */
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
