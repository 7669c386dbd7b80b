import type { CardMemory } from './cardMemory.js';
import type { Scope } from './scope.js';
import type { KernelCall, Kernels } from './kernels.js';
import { newMatrix, type Matrix, type MatrixType } from './matrix.js';

/** Kernels that copy, convert and sum. */
export class ElementCalls {
  constructor(
    readonly memory: CardMemory,
    protected readonly kernels: Kernels,
  ) {}

  launch(call: KernelCall, type?: MatrixType): void {
    const definitions = [...(call.definitions ?? []), ...(type === undefined ? [] : [`ACTIVATION=${type}`])];
    this.kernels.launch({ ...call, definitions });
  }

  /** The matrix in that type: itself, or a copy, rounded to nearest even or widened. */
  as(type: MatrixType, matrix: Matrix, scope: Scope): Matrix {
    if (matrix.type === type) return matrix;
    const copy = newMatrix(scope, matrix.rows, matrix.columns, type);
    this.copy(copy, matrix);
    return copy;
  }

  /** Types may differ. */
  copy(to: Matrix, from: Matrix): void {
    const { rows, columns } = to;
    if (to.type === from.type) {
      const strides = { to_stride: to.stride, from_stride: from.stride };
      const parameters = { to: to.address, from: from.address, rows, columns, ...strides };
      const grid = [Math.ceil((rows * columns) / 256)] as const;
      return this.launch({ file: 'elementwise', kernel: 'copy_matrix', grid, parameters }, to.type);
    }
    const isRounding = from.type === 'float';
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
  sumSlices(to: number, partial: number, slices: number, columns: number, adds = false): void {
    this.launch(
      {
        file: 'sums',
        kernel: 'sum_slices',
        grid: [Math.ceil(columns / 32)],
        parameters: { to, partial, slices, columns, adds: Number(adds) },
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

/** Rows per thread: fixed, so that sums depend only on shapes. */
export const sliceRows = 64;
