import type { Card, PlannedProduct } from './cudaAddon.js';
import { bytesOf, type Matrix } from './matrix.js';
import { encodeProduct } from './launchList.js';

/** A batch of products of the same shape, at constant distances. */
export interface BlasProduct {
  readonly to: Matrix;
  readonly a: Matrix;
  readonly b: Matrix;
  /** Added to the product; `to` itself to accumulate. */
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
  /** Addresses of floats that scale the sums, one per row of op(a) and one per column of op(b); null: no scales. */
  readonly scales: { readonly rows: number; readonly columns: number } | null;
}

const cudaType = { float: 0, bf16: 14, e4m3: 28 } as const;

/** cuBLASLt's workspace for split sums: NVIDIA's recommendation for Hopper. */
export const workspaceBytes = 32 * 2 ** 20;

/**
 * Products by cuBLASLt. Each shape is planned once, by the library's own heuristics and never by timing, so that the same card, driver and
 * library always choose the same algorithm; the chosen ones are recorded.
 */
export class BlasProducts {
  /** Planned shapes with the library's encoded algorithm; null if it has none. */
  readonly algorithms = new Map<string, string | null>();
  /** By a hash of the shape: a step looks up hundreds of plans, and string keys would cost more than everything else of queueing. */
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

  /** False if the library has no algorithm for it: then nothing was queued. */
  run(product: BlasProduct): boolean {
    const plan = this.planOf(shapeOf(product));
    if (plan === null) return false;
    const { to, a, b, addend, scale, scales } = product;
    this.card.run(
      encodeProduct({
        ...{ plan, alpha: scale, beta: addend === null ? 0 : 1 },
        // cuBLASLt reads matrices column by column, so ours appear transposed and left and right are swapped.
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

/** Largest alignment in bytes, up to 256, of the addresses of all batch members. */
function alignmentOf({ address, type }: Matrix, stride: number): number {
  const bits = (address | (stride * bytesOf[type]) | 256) & 511; // of integers up to 2^53 the lowest 32 bits
  return bits & -bits;
}
