import type { MatrixCalls } from './matrixCalls.js';
import { newMatrix, rowsOf, type Arithmetic, type Matrix } from './matrix.js';
import type { Scope } from './scope.js';

/** Coefficients of a Newton-Schulz step a x + b x³ + c x⁵ (Jordan and others 2024). */
const [first, third, fifth] = [3.4445, -4.775, 2.0315];
const stepCount = 5;

/** Matrices of the same shape, stacked: [count * rows, columns]. */
export interface Stack {
  readonly all: Matrix;
  readonly count: number;
  readonly rows: number;
}

export function newStack(scope: Scope, count: number, rows: number, columns: number): Stack {
  return { all: newMatrix(scope, count * rows, columns, 'float'), count, rows };
}

export function matricesOf({ all, count, rows }: Stack, of: Matrix = all): Matrix[] {
  return Array.from({ length: count }, (_, i) => rowsOf(of, i * rows, rows));
}

/**
 * The signs of a stack's matrices, which must not have more rows than columns. Overwrites the stack; the result is in its memory or in
 * newly allocated memory. All matrices go through each step together.
 */
export function matrixSigns(calls: MatrixCalls, stack: Stack, arithmetic: Arithmetic, scope: Scope): Stack {
  const { all, count, rows: m } = stack;
  const { columns: n, stride } = all;
  const inverse = inverseNorms(calls, stack, scope);
  const isRounded = arithmetic === 'bfloat16';
  const operand = isRounded ? newMatrix(scope, count * m, n, 'bf16') : null;
  const [square, fourth] = [newMatrix(scope, count * m, m, 'float'), newMatrix(scope, count * m, m, 'float')];
  const [squareOperand, factor] = isRounded
    ? [newMatrix(scope, count * m, m, 'bf16'), newMatrix(scope, count * m, m, 'bf16')]
    : [square, fourth];
  const split = (of: Matrix) => matricesOf({ ...stack, all: of });
  let [x, next] = [all, newMatrix(scope, count * m, n, 'float')];
  for (let step = 0; step < stepCount; step++) {
    calls.launch({
      file: 'muon',
      kernel: 'begin_sign_step',
      grid: [Math.ceil((m * n) / 256), count],
      parameters: {
        ...{ next: next.address, operand: operand?.address ?? 0, x: x.address },
        ...{ inverse: step === 0 ? inverse : 0, rows: m, columns: n, stride, factor: first },
      },
    });
    const read = operand ?? x;
    calls.squares(square, read, count);
    if (isRounded) calls.copy(squareOperand, square);
    calls.squares(fourth, squareOperand, count);
    calls.launch({
      file: 'muon',
      kernel: 'sign_polynomial',
      grid: [Math.ceil((count * m * m) / 256)],
      parameters: {
        ...{ rounded: isRounded ? factor.address : 0, plain: isRounded ? 0 : factor.address },
        ...{ square: square.address, fourth: fourth.address },
        ...{ rows: count * m, columns: m, stride: square.stride, third, fifth },
      },
    });
    const [to, factors, from] = [split(next), split(factor), split(read)];
    calls.products(
      to.map((matrix, i) => ({ to: matrix, a: factors[i]!, b: from[i]! })),
      { adds: true },
    );
    [x, next] = [next, x];
  }
  return { ...stack, all: x };
}

/** The address of 1 / norm of each matrix. */
function inverseNorms(calls: MatrixCalls, { all, count, rows }: Stack, scope: Scope): number {
  const parts = Math.ceil((rows * all.columns) / 8192);
  const [partial, inverse] = [scope.take(8 * count * parts), scope.take(4 * count)];
  calls.launch({
    file: 'muon',
    kernel: 'matrix_squares',
    grid: [parts, count],
    parameters: { partial, x: all.address, rows, columns: all.columns, stride: all.stride },
  });
  calls.launch({
    file: 'muon',
    kernel: 'inverse_norms',
    grid: [count],
    parameters: { inverse, partial, parts },
  });
  return inverse;
}
