import type { CardMemory, Scope } from './cardMemory.js';
import type { KernelCall } from './kernels.js';
import type { Kernels } from './kernels.js';

/** What products compute in. */
export type Arithmetic = 'float32' | 'bfloat16';
export type MatrixType = 'float' | 'bf16';

/** Rows of a matrix in the card's memory, `stride` elements apart. */
export interface Matrix {
  readonly address: number;
  readonly rows: number;
  readonly columns: number;
  readonly stride: number;
  readonly type: MatrixType;
}

export const bytesOf = { float: 4, bf16: 2 } as const;
export const typeOf = (arithmetic: Arithmetic): MatrixType => (arithmetic === 'float32' ? 'float' : 'bf16');

/** Rows of products begin at multiples of 16 bytes. */
export const padded = (columns: number) => Math.ceil(columns / 8) * 8;

export function newMatrix(scope: Scope, rows: number, columns: number, type: MatrixType): Matrix {
  const stride = padded(columns);
  return { address: scope.take(rows * stride * bytesOf[type]), rows, columns, stride, type };
}

/** A buffer of floats, rows one after the other. */
export function tight(address: number, rows: number, columns: number): Matrix {
  return { address, rows, columns, stride: columns, type: 'float' };
}

export function columnsOf(matrix: Matrix, first: number, columns: number): Matrix {
  return { ...matrix, address: matrix.address + first * bytesOf[matrix.type], columns };
}

export function rowsOf(matrix: Matrix, first: number, rows: number): Matrix {
  return { ...matrix, address: matrix.address + first * matrix.stride * bytesOf[matrix.type], rows };
}

export interface ProductOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
  readonly scale?: number;
  /** Address of a float that multiplies the scale as well. */
  readonly factor?: number | null;
  /** Of floats, as large as what is made; added before the one rounding. */
  readonly addend?: Matrix | null;
  /** Address of a float for each column. */
  readonly bias?: number | null;
  /** To what `to`, of floats, holds. */
  readonly adds?: boolean;
}

const tile = 128;
const stages = 3;
/** Bytes of a stage of the kernel: its tile of the left and of the right matrix, with their padding. */
const stageBytes = {
  product: 2 * (128 * 40 + 32 * 136),
  product_right_transposed: 2 * (128 * 40 + 128 * 40),
  product_left_transposed: 2 * (32 * 136 + 32 * 136),
} as const;

/** The kernels of a card, by what they do to matrices. */
export class MatrixCalls {
  constructor(
    readonly memory: CardMemory,
    private readonly kernels: Kernels,
  ) {}

  launch(call: KernelCall, type?: MatrixType): void {
    const definitions = [...(call.definitions ?? []), ...(type === undefined ? [] : [`ACTIVATION=${type}`])];
    this.kernels.launch({ ...call, definitions });
  }

  /** to = scale * op(a) op(b), with a and b of one type, which decides the arithmetic. */
  product(to: Matrix, a: Matrix, b: Matrix, options: ProductOptions = {}): void {
    const { transposeA = false, transposeB = false, scale = 1, factor = null, adds = false } = options;
    const { addend = null, bias = null } = options;
    const k = transposeA ? a.rows : a.columns;
    const [m, n] = [transposeA ? a.columns : a.rows, transposeB ? b.rows : b.columns];
    if (k !== (transposeB ? b.columns : b.rows) || to.rows !== m || to.columns !== n || a.type !== b.type)
      throw new Error(`A product of ${m} x ${k} and ${n} columns, into ${to.rows} x ${to.columns}`);
    const ends = {
      ...{ addend: addend?.address ?? 0, addend_stride: addend?.stride ?? 0, bias: bias ?? 0 },
      ...{ factor: factor ?? 0, scale, adds: Number(adds), m, n, k, c_stride: to.stride },
    };
    if (a.type === 'float') {
      if (to.type !== 'float') throw new Error('A product in float32 makes floats');
      this.launch({
        file: 'product_float',
        kernel: 'product_float',
        grid: [Math.ceil(n / 64), Math.ceil(m / 64)],
        parameters: {
          ...{ c: to.address, a: a.address, b: b.address, ...ends },
          ...(transposeA ? { a_row: 1, a_column: a.stride } : { a_row: a.stride, a_column: 1 }),
          ...(transposeB ? { b_row: 1, b_column: b.stride } : { b_row: b.stride, b_column: 1 }),
        },
      });
      return;
    }
    if (transposeA && transposeB) throw new Error('No product needs both matrices transposed');
    const kernel = transposeA
      ? 'product_left_transposed'
      : transposeB
        ? 'product_right_transposed'
        : 'product';
    this.launch({
      file: 'product',
      kernel,
      grid: [Math.ceil(n / tile), Math.ceil(m / tile)],
      dynamicSharedBytes: stages * stageBytes[kernel],
      parameters: {
        c_bf16: to.type === 'bf16' ? to.address : 0,
        c_float: to.type === 'float' ? to.address : 0,
        ...{ a: a.address, b: b.address, a_stride: a.stride, b_stride: b.stride },
        ...{ slice_k: Math.max(32, Math.ceil(k / 32) * 32), slice_elements: 0, ...ends },
      },
    });
  }

  /** The matrix in that type: itself, or a copy that is rounded to nearest even, or widened. */
  as(type: MatrixType, matrix: Matrix, scope: Scope): Matrix {
    if (matrix.type === type) return matrix;
    const copy = newMatrix(scope, matrix.rows, matrix.columns, type);
    this.copy(copy, matrix);
    return copy;
  }

  /** Between types. */
  copy(to: Matrix, from: Matrix): void {
    const { rows, columns } = to;
    const isRounding = to.type === 'bf16' || from.type === 'float';
    this.launch(
      {
        file: 'elementwise',
        kernel: isRounding ? 'round_matrix' : 'widen_matrix',
        grid: [Math.ceil((rows * columns) / 256)],
        parameters: {
          ...{ to: to.address, from: from.address, rows, columns },
          ...{ to_stride: to.stride, from_stride: from.stride, ...(isRounding && { factor: 1 }) },
        },
      },
      isRounding ? to.type : from.type,
    );
  }

  /** to[columns] = the sum over slices of partial[slices, columns]. */
  sumSlices(to: number, partial: number, slices: number, columns: number): void {
    this.launch(
      {
        file: 'sums',
        kernel: 'sum_slices',
        grid: [Math.ceil(columns / 128)],
        parameters: { to, partial, slices, columns, adds: 0 },
      },
      'bf16',
    );
  }

  /** to[columns] = the sums of a matrix's columns. */
  sumColumns(to: number, of: Matrix, scope: Scope): void {
    const slices = Math.ceil(of.rows / sliceRows);
    const partial = scope.take(slices * of.columns * 4);
    this.launch(
      {
        file: 'sums',
        kernel: 'column_sum',
        grid: [Math.ceil(of.columns / 128), slices],
        parameters: {
          ...{ partial, x: of.address, rows: of.rows, columns: of.columns },
          ...{ stride: of.stride, slice_rows: sliceRows },
        },
      },
      of.type,
    );
    this.sumSlices(to, partial, slices, of.columns);
  }
}

/** Rows that one thread adds up: fixed, so that sums depend on shapes alone. */
export const sliceRows = 64;
