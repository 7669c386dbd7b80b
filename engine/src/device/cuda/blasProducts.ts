import type { Card, PlannedProduct } from './cudaAddon.js';
import { bytesOf, type Matrix } from './matrix.js';
import { encodeProduct } from './launchList.js';

/** Products of one batch: of one shape, each at the same distance from the one before it. */
export interface BlasProduct {
  readonly to: Matrix;
  readonly a: Matrix;
  readonly b: Matrix;
  /** Added to the product; `to` itself for a sum. */
  readonly addend: Matrix | null;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  readonly scale: number;
  /** Elements between the members of the batch. */
  readonly batch: {
    readonly count: number;
    readonly to: number;
    readonly a: number;
    readonly b: number;
    readonly addend: number;
  };
  /** Addresses of a float for each row of op(a) and each column of op(b), which multiply the sums; null for none. */
  readonly scales: { readonly rows: number; readonly columns: number } | null;
}

const cudaType = { float: 0, bf16: 14, e4m3: 28 } as const;

/** cuBLASLt's workspace for sums in parts: what NVIDIA advises for Hopper. */
export const workspaceBytes = 32 * 2 ** 20;

/**
 * Products by cuBLASLt. Each shape is planned once, by the library's own rules and never by timing, so that the same card,
 * driver and library take the same algorithm again; which ones were taken is kept.
 */
export class BlasProducts {
  /** What was planned, and the library's bytes for its algorithm; null where it has none. */
  readonly algorithms = new Map<string, string | null>();
  /** By a hash of their shapes: a step asks for hundreds, and text as the key would cost more than all else of its queueing. */
  private readonly plans = new Map<
    number,
    { readonly shape: PlannedProduct; readonly plan: number | null }[]
  >();

  constructor(
    private readonly card: Card,
    readonly version: number,
  ) {
    card.openProducts(workspaceBytes);
  }

  /** False where the library has no algorithm for it: then nothing was queued. */
  run(product: BlasProduct): boolean {
    const plan = this.planOf(shapeOf(product));
    if (plan === null) return false;
    const { to, a, b, addend, scale, scales } = product;
    this.card.run(
      encodeProduct({
        ...{ plan, alpha: scale, beta: addend === null ? 0 : 1 },
        // Column by column a matrix is its own transpose, so left and right change places.
        ...{ a: b.address, b: a.address, c: (addend ?? to).address, d: to.address },
        ...{ scaleA: scales?.columns ?? 0, scaleB: scales?.rows ?? 0 },
      }),
    );
    return true;
  }

  private planOf(shape: PlannedProduct): number | null {
    const hash = hashOf(shape);
    let known = this.plans.get(hash);
    if (known === undefined) this.plans.set(hash, (known = []));
    const found = known.find((other) => isSame(other.shape, shape));
    if (found !== undefined) return found.plan;
    const made = this.card.planProduct(shape);
    const plan = made?.plan ?? null;
    known.push({ shape, plan });
    this.algorithms.set(Object.values(shape).join(' '), made?.algorithm ?? null);
    return plan;
  }
}

const fields = [
  ...(['m', 'n', 'k', 'batch', 'isATransposed', 'isBTransposed', 'typeAB', 'typeCD'] as const),
  ...(['leadA', 'leadB', 'leadC', 'leadD', 'strideA', 'strideB', 'strideC', 'strideD'] as const),
  ...(['alignmentA', 'alignmentB', 'alignmentC', 'alignmentD', 'isScaled'] as const),
] satisfies (keyof PlannedProduct)[];

function hashOf(shape: PlannedProduct): number {
  let hash = 0;
  for (const field of fields) hash = (Math.imul(hash, 31) + shape[field]) | 0;
  return hash;
}

const isSame = (one: PlannedProduct, other: PlannedProduct) =>
  fields.every((field) => one[field] === other[field]);

function shapeOf({ to, a, b, addend, transposeA, transposeB, batch, scales }: BlasProduct): PlannedProduct {
  const c = addend ?? to;
  const strideC = addend === null ? batch.to : batch.addend;
  return {
    m: to.columns,
    n: to.rows,
    k: transposeA ? a.rows : a.columns,
    batch: batch.count,
    isATransposed: Number(transposeB),
    isBTransposed: Number(transposeA),
    typeAB: cudaType[a.type],
    typeCD: cudaType[to.type],
    leadA: b.stride,
    leadB: a.stride,
    leadC: c.stride,
    leadD: to.stride,
    strideA: batch.b,
    strideB: batch.a,
    strideC,
    strideD: batch.to,
    alignmentA: alignmentOf(b, batch.b),
    alignmentB: alignmentOf(a, batch.a),
    alignmentC: alignmentOf(c, strideC),
    alignmentD: alignmentOf(to, batch.to),
    isScaled: Number(scales !== null),
  };
}

/** Bytes that the address of every member is a multiple of, up to 256. */
function alignmentOf({ address, type }: Matrix, stride: number): number {
  const bits = (address | (stride * bytesOf[type]) | 256) & 511; // of whole numbers up to 2^53 the lowest 32
  return bits & -bits;
}
