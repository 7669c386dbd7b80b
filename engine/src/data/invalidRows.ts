import { DataError } from './dataErrors.js';

/** How many rows may be left out because a field is invalid: a number, or a fraction of all rows. */
export type SkipInvalid = { count: number } | { share: number };

export interface SkippedRow {
  reason: string;
  /** Names file, position and problem. */
  message: string;
}

/** Counts of valid and invalid rows. */
export type RowCounts = Pick<InvalidRows, 'rowCount' | 'skippedCount'> & {
  readonly skipped: readonly SkippedRow[];
};

/** Rows that are reported individually; further ones are only counted. */
const toldMax = 20;

/** Decides what happens with invalid rows: without `allowed` the first one is an error. */
export class InvalidRows {
  /** Rows so far, including those left out. */
  rowCount = 0;
  skippedCount = 0;
  /** The first rows that were left out. */
  readonly skipped: SkippedRow[] = [];

  constructor(private readonly allowed: SkipInvalid | null) {}

  /** Returns the result of `get`, or undefined if the row is left out. Throws the row's DataError if it may not be, or ROWS_INVALID. */
  read<T>(get: () => T): T | undefined {
    this.rowCount++;
    try {
      return get();
    } catch (error) {
      if (!(error instanceof DataError) || this.allowed === null) throw error;
      this.skippedCount++;
      if (this.skipped.length < toldMax) this.skipped.push({ reason: error.reason, message: error.message });
      if ('count' in this.allowed && this.skippedCount > this.allowed.count) this.refuse(this.allowed.count);
      return undefined;
    }
  }

  get counts(): RowCounts {
    const { rowCount, skippedCount, skipped } = this;
    return { rowCount, skippedCount, skipped };
  }

  /** Adds rows that were read elsewhere. Returns false, and adds nothing, if the limit would be exceeded. */
  join({ rowCount, skippedCount, skipped }: RowCounts): boolean {
    const allowed = this.allowed !== null && 'count' in this.allowed ? this.allowed.count : Infinity;
    if (this.skippedCount + skippedCount > allowed) return false;
    this.rowCount += rowCount;
    this.skippedCount += skippedCount;
    for (const row of skipped) if (this.skipped.length < toldMax) this.skipped.push(row);
    return true;
  }

  /** The same for rows whose line numbers are unknown: also false if some of them would be reported. */
  joinUnplaced(counts: RowCounts): boolean {
    if (counts.skippedCount > 0 && this.skipped.length < toldMax) return false;
    return this.join({ ...counts, skipped: [] });
  }

  /** Throws ROWS_INVALID if more rows were left out than the fraction allows. */
  end(): void {
    if (this.allowed === null || !('share' in this.allowed)) return;
    const allowed = Math.floor(this.allowed.share * this.rowCount);
    if (this.skippedCount > allowed) this.refuse(allowed);
  }

  private refuse(allowed: number): never {
    const [first] = this.skipped;
    throw new DataError('ROWS_INVALID', {
      allowed,
      got: this.skippedCount,
      rows: this.rowCount,
      first: first?.message ?? 'none',
    });
  }
}
