import { sliceRows, type Matrix, type MatrixCalls } from './matrix.js';
import type { Scope } from './cardMemory.js';

export interface Norm {
  readonly rows: number;
  readonly hidden: number;
  readonly epsilon: number;
  /** Address of [hidden] floats. */
  readonly gain: number;
}

/** y = the norm of x[rows, hidden], floats one after the other; rstd: [rows] floats. */
export function normForward(calls: MatrixCalls, y: Matrix, rstd: number, x: number, norm: Norm): void {
  const { rows, hidden, epsilon, gain } = norm;
  calls.launch(
    {
      file: 'rms_norm',
      kernel: 'rms_norm_forward',
      grid: [Math.ceil(rows / 8)],
      parameters: { y: y.address, rstd, x, gain, rows, dim: hidden, y_stride: y.stride, epsilon },
    },
    y.type,
  );
}

/** dx = what comes through the norm, plus the residual where there is one. */
export function normBackward(
  calls: MatrixCalls,
  gradients: { readonly dx: number; readonly gain: number },
  dy: Matrix,
  x: number,
  rstd: number,
  residual: number | null,
  { rows, hidden, gain }: Norm,
  scope: Scope,
): void {
  const slices = Math.ceil(rows / sliceRows);
  const partial = scope.take(slices * hidden * 4);
  const shape = { dy: dy.address, x, rstd, rows, dim: hidden, dy_stride: dy.stride };
  // Before dx, which may lie where dy does.
  calls.launch(
    {
      file: 'rms_norm',
      kernel: 'rms_norm_gain',
      grid: [Math.ceil(hidden / 128), slices],
      parameters: { ...shape, partial, slice_rows: sliceRows },
    },
    dy.type,
  );
  calls.sumSlices(gradients.gain, partial, slices, hidden);
  calls.launch(
    {
      file: 'rms_norm',
      kernel: 'rms_norm_backward',
      grid: [Math.ceil(rows / 8)],
      parameters: { ...shape, dx: gradients.dx, residual: residual ?? 0, gain },
    },
    dy.type,
  );
}
