import { DataError } from './dataErrors.js';

/** How many rows may be left out because the field that is read is wrong in them: so many, or a share of all. */
export type SkipInvalid = { count: number } | { share: number };

export interface SkippedRow {
  reason: string;
  /** Names file, place and fault. */
  message: string;
}

/** What was found of rows. */
export type RowCounts = Pick<InvalidRows, 'rowCount' | 'skippedCount'> & {
  readonly skipped: readonly SkippedRow[];
};

/** Rows that are reported one by one; the others are counted. */
const toldMax = 20;

/** Decides what becomes of rows that cannot be read: without `allowed` the first of them is the end. */
export class InvalidRows {
  /** Rows so far, those that were left out among them. */
  rowCount = 0;
  skippedCount = 0;
  /** The first of those that were left out. */
  readonly skipped: SkippedRow[] = [];

  constructor(private readonly allowed: SkipInvalid | null) {}

  /** What `get` returns; undefined for a row that is left out. Throws its DataError where it may not be, or ROWS_INVALID. */
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

  /** Adds rows that were read elsewhere. False, and nothing is added, where more were left out by then than may be. */
  join({ rowCount, skippedCount, skipped }: RowCounts): boolean {
    const allowed = this.allowed !== null && 'count' in this.allowed ? this.allowed.count : Infinity;
    if (this.skippedCount + skippedCount > allowed) return false;
    this.rowCount += rowCount;
    this.skippedCount += skippedCount;
    for (const row of skipped) if (this.skipped.length < toldMax) this.skipped.push(row);
    return true;
  }

  /** The same of rows whose places are not known: false, too, where some of them would be reported. */
  joinUnplaced(counts: RowCounts): boolean {
    if (counts.skippedCount > 0 && this.skipped.length < toldMax) return false;
    return this.join({ ...counts, skipped: [] });
  }

  /** Throws ROWS_INVALID where more were left out than a share allows. */
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
