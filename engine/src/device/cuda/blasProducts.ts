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
  private readonly plans = new Map<string, number | null>();

  constructor(
    private readonly card: Card,
    readonly version: number,
  ) {
    card.openProducts(workspaceBytes);
  }

  /** False where the library has no algorithm for it: then nothing was queued. */
  run(product: BlasProduct): boolean {
    const shape = shapeOf(product);
    const key = Object.values(shape).join(' ');
    let plan = this.plans.get(key);
    if (plan === undefined) {
      const made = this.card.planProduct(shape);
      plan = made?.plan ?? null;
      this.plans.set(key, plan);
      this.algorithms.set(key, made?.algorithm ?? null);
    }
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
}

function shapeOf({ to, a, b, addend, transposeA, transposeB, batch, scales }: BlasProduct): PlannedProduct {
  const c = addend ?? to;
  const strideC = addend === null ? batch.to : batch.addend;
  return {
    ...{ m: to.columns, n: to.rows, k: transposeA ? a.rows : a.columns, batch: batch.count },
    ...{ isATransposed: Number(transposeB), isBTransposed: Number(transposeA) },
    ...{ typeAB: cudaType[a.type], typeCD: cudaType[to.type] },
    ...{ leadA: b.stride, leadB: a.stride, leadC: c.stride, leadD: to.stride },
    ...{ strideA: batch.b, strideB: batch.a, strideC, strideD: batch.to },
    alignmentA: alignmentOf(b, batch.b),
    alignmentB: alignmentOf(a, batch.a),
    alignmentC: alignmentOf(c, strideC),
    alignmentD: alignmentOf(to, batch.to),
    isScaled: Number(scales !== null),
  };
}

/** Bytes that the address of every member is a multiple of. */
function alignmentOf({ address, type }: Matrix, stride: number): number {
  let bytes = 256;
  while (address % bytes !== 0 || (stride * bytesOf[type]) % bytes !== 0) bytes /= 2;
  return bytes;
}
