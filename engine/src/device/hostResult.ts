import type { ResultBuffer, StepResult } from './device.js';

/** Losses of rows from `firstRow` on, and their sum. */
export interface AddedLosses {
  losses: Float32Array;
  sum: number;
  scale: number;
  firstRow: number;
}

/** The step result of devices that compute in JavaScript's memory; device.ts says how it is accumulated. */
export class HostResult implements ResultBuffer {
  readonly rowLosses: Float32Array;
  private loss = 0;
  private lossSum = 0;
  private squaredNorm = 0;

  constructor(readonly rowCount: number) {
    this.rowLosses = new Float32Array(rowCount);
  }

  clear(): void {
    this.loss = this.lossSum = this.squaredNorm = 0;
    this.rowLosses.fill(0);
  }

  addLosses({ losses, sum, scale, firstRow }: AddedLosses): void {
    this.loss += Math.fround(scale * sum);
    this.lossSum += sum;
    if (firstRow < this.rowCount) this.rowLosses.set(losses.subarray(0, this.rowCount - firstRow), firstRow);
  }

  addSquares(sum: number): void {
    this.squaredNorm += sum;
  }

  /** Null if the update must not change anything: the loss or the norm is not finite. */
  clipFactor(normMax: number): number | null {
    if (!Number.isFinite(this.loss) || !Number.isFinite(this.squaredNorm)) return null;
    const norm = Math.sqrt(this.squaredNorm);
    return norm > normMax ? normMax / norm : 1;
  }

  write({ loss, lossSum, rowLosses }: Omit<StepResult, 'squaredNorm'>): void {
    this.loss = loss;
    this.lossSum = lossSum;
    this.rowLosses.set(rowLosses);
  }

  read(): StepResult {
    const { loss, lossSum, squaredNorm } = this;
    return { loss, lossSum, squaredNorm, rowLosses: this.rowLosses.slice() };
  }
}
