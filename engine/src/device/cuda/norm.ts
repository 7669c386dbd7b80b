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

/** Whether kernels of norms make codes of what they write. */
export const makesCodes = ({ hidden }: Pick<Norm, 'hidden'>) => hidden % 8 === 0;

/** What goes into a norm, [rows, hidden] one after the other: floats as they flow, or rounded as the state of a half keeps them. */
export interface NormInput {
  readonly address: number;
  readonly type: 'float' | 'bf16';
}

/** Room for what a state keeps of the input of a norm. */
export const keptInput = (scope: Scope, { rows, hidden }: Pick<Norm, 'rows' | 'hidden'>): NormInput => ({
  address: scope.take(2 * rows * hidden),
  type: 'bf16',
});

/** y, with its codes where it has room for them, = the norm of x; rstd: [rows] floats; `kept` becomes x rounded. */
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

/** Where the gradients of a norm go; `rounded`: dx as products read it, where somebody will. */
export interface NormGradients {
  readonly dx: number;
  readonly gain: number;
  readonly rounded: Matrix | null;
}

/** The kernel for both gradients at once has this much shared memory. */
const bothMax = 2048;

/** Whether `rounded` is written. */
export const roundsGradient = ({ hidden }: Pick<Norm, 'hidden'>) => hidden % 8 === 0 && hidden <= bothMax;

/** dx = what comes through the norm, plus the residual where there is one. */
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
  // Before dx, which may lie where dy does.
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
