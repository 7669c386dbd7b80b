import type { CardMemory } from './cardMemory.js';
import { Scope } from './scope.js';
import type { BlasProduct, BlasProducts } from './blasProducts.js';
import { ElementCalls } from './elementCalls.js';
import type { Kernels } from './kernels.js';
import { bytesOf, type Matrix } from './matrix.js';
import type { Quantized } from './quantized.js';

export interface ProductOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
  readonly scale?: number;
  /** Address of a float that is multiplied with the scale. */
  readonly factor?: number | null;
  /** Same size as the result; added before the final rounding. In float32, or the type of `to`. */
  readonly addend?: Matrix | null;
  /** Address of one float per column. */
  readonly bias?: number | null;
  /** Add to the contents of `to`, which must be float32. */
  readonly adds?: boolean;
}

/** One of several products that share everything else. */
export interface ProductPart {
  readonly to: Matrix;
  readonly a: Matrix;
  readonly b: Matrix;
  readonly addend?: Matrix | null;
}

const tile = 128;
const stages = 3;
/** Bytes of a stage of the kernel: its padded tiles of the left and the right matrix. */
const stageBytes = {
  product: 2 * (128 * 40 + 32 * 136),
  product_right_transposed: 2 * (128 * 40 + 128 * 40),
  product_left_transposed: 2 * (32 * 136 + 32 * 136),
} as const;

/** Products of matrices: by cuBLASLt if it supports them, otherwise by our own kernels. */
export class ProductCalls extends ElementCalls {
  constructor(
    memory: CardMemory,
    kernels: Kernels,
    /** Null: all products use our own kernels. */
    private readonly blas: BlasProducts | null = null,
  ) {
    super(memory, kernels);
  }

  /** to = scale * op(a) op(b); a and b have the same type, which determines the precision. */
  product(to: Matrix, a: Matrix, b: Matrix, options: ProductOptions = {}): void {
    this.products([{ to, a, b, addend: options.addend ?? null }], options);
  }

  /**
   * Several products of the same kind. `areTogether`: the corresponding matrices of all products are in one allocation, so that their
   * distances, and with them whether they become one batched product, depend only on shapes.
   */
  products(
    parts: readonly ProductPart[],
    options: Omit<ProductOptions, 'addend'> = {},
    areTogether = true,
  ): void {
    for (const { to, a, b } of parts) checkProduct(to, a, b, options);
    const batch = areTogether || parts.length === 1 ? batchOf(parts) : null;
    if (batch !== null && this.byBlas(parts[0]!, batch, options)) return;
    for (const part of parts) {
      if (parts.length === 1 || !this.byBlas(part, batchOf([part])!, options)) this.byKernel(part, options);
    }
  }

  /**
   * to = x xᵀ in float32, for `count` matrices stacked as rows of `x`: our own kernels compute half of each; libraries would compute all of
   * it.
   */
  squares(to: Matrix, x: Matrix, count: number): void {
    const m = to.columns;
    if (to.rows !== count * m || x.rows !== to.rows || to.type !== 'float')
      throw new Error(`Squares of ${count} of ${x.rows} rows, into ${to.rows} x ${to.columns}`);
    if (x.type === 'float') {
      const across = Math.ceil(m / 64);
      const strides = { c_stride: to.stride, x_stride: x.stride };
      const parameters = { c: to.address, x: x.address, m, k: x.columns, ...strides };
      const grid = [across, across, count] as const;
      return this.launch({ file: 'product_float', kernel: 'squares_float', grid, parameters });
    }
    const across = Math.ceil(m / tile);
    this.launch({
      file: 'product',
      kernel: 'product_squares',
      grid: [across, across, count],
      dynamicSharedBytes: stages * stageBytes.product_right_transposed,
      parameters: {
        ...{
          c_bf16: 0,
          c_float: to.address,
          a: x.address,
          b: x.address,
          a_stride: x.stride,
          b_stride: x.stride,
        },
        ...{ m, n: m, k: x.columns, c_stride: to.stride, slice_k: x.columns, slice_elements: m * to.stride },
        ...{ addend: 0, addend_stride: 0, bias: 0, factor: 0, scale: 1, adds: 0 },
      },
    });
  }

  /** to = a bᵀ + addend of e4m3 matrices with their scales. */
  e4m3Product(to: Matrix, a: Quantized, b: Quantized, addend: Matrix | null): void {
    const shape = { to, a: a.codes, b: b.codes, addend, transposeA: false, transposeB: true, scale: 1 };
    const batch = { count: 1, to: 0, a: 0, b: 0, addend: 0 };
    const scales = { rows: a.scales, columns: b.scales };
    if (a.codes.columns !== b.codes.columns || to.rows !== a.codes.rows || to.columns !== b.codes.rows)
      throw new Error(`A product of ${a.codes.columns} codes, into ${to.rows} x ${to.columns}`);
    const isAlike = addend === null || addend.type === to.type;
    if (this.blas !== null && isAlike && this.blas.run({ ...shape, batch, scales })) {
      return this.kernels.counted('cublaslt_e4m3');
    }
    const scope = new Scope(this.memory);
    const added = addend && this.as('float', addend, scope);
    this.launch({
      file: 'product_e4m3',
      kernel: 'product_e4m3',
      grid: [Math.ceil(to.columns / tile), Math.ceil(to.rows / tile)],
      dynamicSharedBytes: stages * stageBytes.product_right_transposed,
      parameters: {
        c_bf16: to.type === 'bf16' ? to.address : 0,
        c_float: to.type === 'float' ? to.address : 0,
        ...{ a: a.codes.address, b: b.codes.address, row_scales: a.scales, column_scales: b.scales },
        ...{ m: to.rows, n: to.columns, k: a.codes.columns, c_stride: to.stride },
        ...{ addend: added?.address ?? 0, addend_stride: added?.stride ?? 0 },
      },
    });
    scope.end();
  }

  private byBlas(
    { to, a, b, addend = null }: ProductPart,
    batch: BlasProduct['batch'],
    {
      transposeA = false,
      transposeB = false,
      scale = 1,
      factor = null,
      adds = false,
      bias = null,
    }: ProductOptions,
  ): boolean {
    if (this.blas === null || a.type !== 'bf16' || bias !== null || factor !== null) return false;
    if (to.rows * to.columns === 0) return true; // nothing to do
    if (addend !== null && (adds || addend.type !== to.type)) return false;
    const added = adds ? to : addend;
    const shape = { transposeA, transposeB, scale, scales: null };
    const strides = adds ? { ...batch, addend: batch.to } : batch;
    if (!this.blas.run({ to, a, b, addend: added, batch: strides, ...shape })) return false;
    this.kernels.counted('cublaslt');
    return true;
  }

  private byKernel({ to, a, b, addend = null }: ProductPart, options: ProductOptions): void {
    const {
      transposeA = false,
      transposeB = false,
      scale = 1,
      factor = null,
      adds = false,
      bias = null,
    } = options;
    const k = transposeA ? a.rows : a.columns;
    const [m, n] = [to.rows, to.columns];
    if (a.type !== 'float' && addend !== null && addend.type !== 'float') {
      // Our own kernel adds floats.
      const scope = new Scope(this.memory);
      this.byKernel({ to, a, b, addend: this.as('float', addend, scope) }, options);
      return scope.end();
    }
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
    const kernel = transposeA
      ? 'product_left_transposed'
      : transposeB
        ? 'product_right_transposed'
        : 'product';
    const [columns, rows] = [Math.ceil(n / tile), Math.ceil(m / tile)];
    const slices = slicesOf(to, columns * rows, k, addend !== null || bias !== null);
    const sliceK = Math.max(32, Math.ceil(k / slices / 32) * 32);
    const scope = new Scope(this.memory);
    const partial = slices > 1 ? scope.take(4 * slices * m * n) : 0;
    this.launch({
      file: 'product',
      kernel,
      grid: [columns, rows, Math.ceil(k / sliceK)],
      dynamicSharedBytes: stages * stageBytes[kernel],
      parameters: {
        c_bf16: to.type === 'bf16' ? to.address : 0,
        c_float: to.type === 'float' ? to.address : 0,
        ...{ a: a.address, b: b.address, a_stride: a.stride, b_stride: b.stride },
        ...{ slice_k: sliceK, slice_elements: slices > 1 ? m * n : 0, ...ends },
        ...(slices > 1 && { c_float: partial, adds: 0 }),
      },
    });
    if (slices > 1) this.sumSlices(to.address, partial, Math.ceil(k / sliceK), m * n, adds);
    scope.end();
  }
}

function checkProduct(to: Matrix, a: Matrix, b: Matrix, options: ProductOptions): void {
  const { transposeA = false, transposeB = false } = options;
  const k = transposeA ? a.rows : a.columns;
  const [m, n] = [transposeA ? a.columns : a.rows, transposeB ? b.rows : b.columns];
  if (k !== (transposeB ? b.columns : b.rows) || to.rows !== m || to.columns !== n || a.type !== b.type)
    throw new Error(`A product of ${m} x ${k} and ${n} columns, into ${to.rows} x ${to.columns}`);
  if (a.type !== 'float' && transposeA && transposeB)
    throw new Error('No product needs both matrices transposed');
}

const alone = { count: 1, to: 0, a: 0, b: 0, addend: 0 } as const;

/** The strides by which equal products follow one another; null if they are not equidistant. */
function batchOf(parts: readonly ProductPart[]): BlasProduct['batch'] | null {
  const [first, second] = parts;
  if (first === undefined) return null;
  if (parts.length === 1) return alone;
  const distance = (of: 'to' | 'a' | 'b' | 'addend'): number | null => {
    const [one, other] = [first[of], (second ?? first)[of]];
    if (!one || !other) return one === other || (!one && !other) ? 0 : null;
    const bytes = other.address - one.address;
    const isEven = parts.every((part, i) => {
      const found = part[of];
      return (
        !!found &&
        found.address === one.address + i * bytes &&
        (['rows', 'columns', 'stride', 'type'] as const).every((key) => found[key] === one[key])
      );
    });
    return isEven && bytes >= 0 && bytes % bytesOf[one.type] === 0 ? bytes / bytesOf[one.type] : null;
  };
  const [to = null, a = null, b = null, addend = null] = (['to', 'a', 'b', 'addend'] as const).map(distance);
  if (to === null || a === null || b === null || addend === null) return null;
  return { count: parts.length, to, a, b, addend };
}

/** Number of slices of a long sum that would otherwise fill too few blocks: depends only on shapes. */
function slicesOf(to: Matrix, tiles: number, k: number, hasEnds: boolean): number {
  if (to.type !== 'float' || to.stride !== to.columns || hasEnds || tiles >= 64) return 1;
  return Math.max(1, Math.min(Math.floor(k / 1024), Math.ceil(128 / tiles)));
}
