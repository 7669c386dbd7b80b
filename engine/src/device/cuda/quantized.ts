import type { Scope } from './scope.js';
import { tight, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** A matrix in e4m3, row by row along the summation dimension of products, with one scale per row. */
export interface Quantized {
  /** The number of columns is a multiple of 16, with zero padding. */
  readonly codes: Matrix;
  /** Address of one float per row. */
  readonly scales: number;
}

const paddedCodes = (columns: number) => Math.ceil(columns / 16) * 16;

/** Allocates memory for a matrix in e4m3. */
export function newQuantized(scope: Scope, { rows, columns }: Pick<Matrix, 'rows' | 'columns'>): Quantized {
  const width = paddedCodes(columns);
  const address = scope.take(rows * width);
  return {
    codes: { address, rows, columns: width, stride: width, type: 'e4m3' },
    scales: scope.take(4 * rows),
  };
}

/** Kernel parameters for codes written together with the rows; zero if no codes are wanted. */
export function codesParameters(of: Quantized | undefined) {
  return {
    ...{ codes: of?.codes.address ?? 0, scales: of?.scales ?? 0, codes_columns: of?.codes.columns ?? 0 },
  };
}

/** Each row times 448 over its largest magnitude, rounded to nearest even: existing codes if there are any, otherwise computed now. */
export function quantized(calls: MatrixCalls, of: Matrix, scope: Scope): Quantized {
  if (of.codes !== undefined) return of.codes;
  const made = newQuantized(scope, of);
  const { codes, scales } = made;
  calls.launch(
    {
      ...{ file: 'quantize', kernel: 'quantize_rows', grid: [Math.ceil(of.rows / 8)] as const },
      parameters: {
        ...{ to: codes.address, scales, from: of.address, rows: of.rows, columns: of.columns },
        ...{ to_columns: codes.columns, stride: of.stride },
      },
    },
    of.type,
  );
  return made;
}

/** The transposed float matrix, with contiguous rows. */
export function transposed(calls: MatrixCalls, of: Matrix, scope: Scope): Matrix {
  const to = tight(scope.take(4 * of.rows * of.columns), of.columns, of.rows);
  calls.launch(
    {
      file: 'quantize',
      kernel: 'transpose',
      grid: [Math.ceil(of.columns / 32), Math.ceil(of.rows / 32)],
      parameters: { to: to.address, from: of.address, rows: of.rows, columns: of.columns, stride: of.stride },
    },
    'float',
  );
  return to;
}
