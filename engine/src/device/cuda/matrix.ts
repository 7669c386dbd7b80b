import type { Scope } from './scope.js';
import type { Quantized } from './quantized.js';

/** Precision of products. */
export type Arithmetic = 'float32' | 'bfloat16';
export type MatrixType = 'float' | 'bf16' | 'e4m3';

/** A matrix in the card's memory; its rows are `stride` elements apart. */
export interface Matrix {
  readonly address: number;
  readonly rows: number;
  readonly columns: number;
  readonly stride: number;
  readonly type: MatrixType;
  /** The same matrix in e4m3, row by row, if the kernel that made it also made the codes. */
  readonly codes?: Quantized;
}

export const bytesOf = { float: 4, bf16: 2, e4m3: 1 } as const;
export const typeOf = (arithmetic: Arithmetic): MatrixType => (arithmetic === 'float32' ? 'float' : 'bf16');

export function withoutCodes({ codes: _, ...matrix }: Matrix): Matrix {
  return matrix;
}

/** Rows of operands start at multiples of 16 bytes. */
export const padded = (columns: number) => Math.ceil(columns / 8) * 8;

/** Padded width of wide matrices, unless something else determines it: products are fastest with multiples of 64. */
export const widthOf = (columns: number) => (columns < 256 ? padded(columns) : Math.ceil(columns / 64) * 64);

export function newMatrix(scope: Scope, rows: number, columns: number, type: MatrixType): Matrix {
  const stride = padded(columns);
  return { address: scope.take(rows * stride * bytesOf[type]), rows, columns, stride, type };
}

/** A buffer of floats with contiguous rows. */
export function tight(address: number, rows: number, columns: number): Matrix {
  return { address, rows, columns, stride: columns, type: 'float' };
}

export function columnsOf({ codes: _, ...matrix }: Matrix, first: number, columns: number): Matrix {
  return { ...matrix, address: matrix.address + first * bytesOf[matrix.type], columns };
}

export function rowsOf({ codes: _, ...matrix }: Matrix, first: number, rows: number): Matrix {
  return { ...matrix, address: matrix.address + first * matrix.stride * bytesOf[matrix.type], rows };
}
