import { sliceRows } from './elementCalls.js';
import type { Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { codesParameters } from './quantized.js';
import type { Scope } from './scope.js';

export interface Norm {
  readonly rows: number;
  readonly hidden: number;
  readonly epsilon: number;
  /** Address of [hidden] floats. */
  readonly gain: number;
}

/** Whether norm kernels can also write codes. */
export const makesCodes = ({ hidden }: Pick<Norm, 'hidden'>) => hidden % 8 === 0;

/** The input of a norm, contiguous [rows, hidden]: float32, or rounded as in the state of a half. */
export interface NormInput {
  readonly address: number;
  readonly type: 'float' | 'bf16';
}

/** Memory for the rounded input that a state keeps. */
export const keptInput = (scope: Scope, { rows, hidden }: Pick<Norm, 'rows' | 'hidden'>): NormInput => ({
  address: scope.take(2 * rows * hidden),
  type: 'bf16',
});

/** y (with its codes if it has memory for them) = the norm of x; rstd: [rows] floats; `kept`: x rounded. */
export function normForward(
  calls: MatrixCalls,
  y: Matrix,
  rstd: number,
  x: NormInput,
  norm: Norm,
  kept: NormInput | null = null,
): void {
  const { rows, hidden, epsilon, gain } = norm;
  calls.launch(
    {
      ...{ file: 'rms_norm', kernel: 'rms_norm_forward', grid: [Math.ceil(rows / 8)] as const },
      definitions: [`INPUT=${x.type}`],
      parameters: {
        ...{ y: y.address, rstd, x: x.address, kept: kept?.address ?? 0, gain },
        ...{ rows, dim: hidden, y_stride: y.stride, epsilon, ...codesParameters(y.codes) },
      },
    },
    y.type,
  );
}

/** Where the gradients of a norm go; `rounded`: dx in the type of products, if something reads it. */
export interface NormGradients {
  readonly dx: number;
  readonly gain: number;
  readonly rounded: Matrix | null;
}

/** Limit on `hidden` from the shared memory of the kernel that computes both gradients. */
const bothMax = 2048;

/** Whether `rounded` is written. */
export const roundsGradient = ({ hidden }: Pick<Norm, 'hidden'>) => hidden % 8 === 0 && hidden <= bothMax;

/** dx = the gradient through the norm, plus the residual if there is one. */
export function normBackward(
  calls: MatrixCalls,
  gradients: NormGradients,
  dy: Matrix,
  x: NormInput,
  rstd: number,
  residual: number | null,
  norm: Norm,
  scope: Scope,
): void {
  const { rows, hidden, gain } = norm;
  const slices = Math.ceil(rows / sliceRows);
  const partial = scope.take(slices * hidden * 4);
  const shape = { dy: dy.address, x: x.address, rstd, rows, dim: hidden, dy_stride: dy.stride };
  const definitions = [`INPUT=${x.type}`];
  if (roundsGradient(norm)) {
    const { dx, rounded } = gradients;
    calls.launch(
      {
        ...{ file: 'rms_norm', kernel: 'rms_norm_both', grid: [slices] as const, definitions },
        dynamicSharedBytes: 8 * hidden * 4,
        parameters: {
          ...{ ...shape, dx, partial, residual: residual ?? 0, gain, slice_rows: sliceRows },
          ...{ rounded: rounded?.address ?? 0, rounded_stride: rounded?.stride ?? 0 },
          ...codesParameters(rounded?.codes),
        },
      },
      dy.type,
    );
    return calls.sumSlices(gradients.gain, partial, slices, hidden);
  }
  // Before dx, which may overwrite dy.
  calls.launch(
    {
      ...{ file: 'rms_norm', kernel: 'rms_norm_gain', definitions },
      grid: [Math.ceil(hidden / 128), slices],
      parameters: { ...shape, partial, slice_rows: sliceRows },
    },
    dy.type,
  );
  calls.sumSlices(gradients.gain, partial, slices, hidden);
  calls.launch(
    {
      ...{ file: 'rms_norm', kernel: 'rms_norm_backward', definitions, grid: [Math.ceil(rows / 8)] as const },
      parameters: { ...shape, dx: gradients.dx, residual: residual ?? 0, gain },
    },
    dy.type,
  );
}
