import type { DeviceBuffer } from '../device.js';
import { sliceRows } from './elementCalls.js';
import { newMatrix, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { Scope } from './scope.js';

interface HeadShape {
  readonly headDim: number;
  readonly epsilon: number;
}

/** Normalizes each head of x[rows, heads * headDim] in place; returns a copy of x from before. */
export function headNormForward(
  calls: MatrixCalls,
  x: Matrix,
  gain: DeviceBuffer,
  { headDim, epsilon }: HeadShape,
  kept: Scope,
): Matrix {
  const made = newMatrix(kept, x.rows, x.columns, x.type);
  const heads = x.columns / headDim;
  calls.launch(
    {
      ...{ file: 'head_norm', kernel: 'head_norm_forward', grid: [Math.ceil((x.rows * heads) / 8)] as const },
      parameters: {
        ...{ x: x.address, made: made.address, gain: calls.memory.floats(gain, headDim, 'headNorms: gain') },
        ...{ rows: x.rows, heads, dim: headDim, stride: x.stride, made_stride: made.stride, epsilon },
      },
    },
    x.type,
  );
  return made;
}

/** Converts `d`, the gradient of the normalized values, into that of `made`; writes `gain`. */
export function headNormBackward(
  calls: MatrixCalls,
  gradients: { readonly d: Matrix; readonly gain: DeviceBuffer },
  made: Matrix,
  gain: DeviceBuffer,
  { headDim, epsilon }: HeadShape,
  scope: Scope,
): void {
  const { d } = gradients;
  const slices = Math.ceil(d.rows / sliceRows);
  const partial = scope.take(slices * headDim * 4);
  const to = calls.memory.floats(gradients.gain, headDim, 'headNorms: gradient of the gain');
  calls.launch(
    {
      ...{ file: 'head_norm', kernel: 'head_norm_backward', grid: [slices] as const },
      parameters: {
        ...{ d: d.address, partial, made: made.address },
        gain: calls.memory.floats(gain, headDim, 'headNorms: gain'),
        ...{ rows: d.rows, heads: d.columns / headDim, dim: headDim, stride: d.stride },
        ...{ made_stride: made.stride, slice_rows: sliceRows, epsilon },
      },
    },
    d.type,
  );
  calls.sumSlices(to, partial, slices, headDim);
}
