/** Where a row of a file begins: the byte, or of Parquet the row group, with the rows and lines that are before it. */
export interface RowPlace {
  at: number;
  rows: number;
  lines: number;
}

/** Behind the end of every file: where its last row ends no other begins. */
export const beyondEnd = Number.MAX_SAFE_INTEGER;

/**
 * What is read of a file: the rows that begin before `to`. The place is that of the first of them; whoever reads moves it to the first row
 * that is left.
 */
export interface PartReading {
  place: RowPlace;
  to: number;
}

export function wholeFile(): PartReading {
  return { place: { at: 0, rows: 0, lines: 0 }, to: beyondEnd };
}

/** A stretch of a file, in bytes or row groups. A row is of the stretch that it begins in. */
export interface FilePart {
  from: number;
  to: number;
  /** Bytes of text that are about in it. */
  bytes: number;
}

/** Stretches of so many bytes. */
export function partsOfBytes(sizeBytes: number, partBytes: number): FilePart[] {
  const count = Math.ceil(sizeBytes / partBytes);
  return Array.from({ length: count }, (_, part) => ({
    from: part * partBytes,
    to: part + 1 === count ? beyondEnd : (part + 1) * partBytes,
    bytes: Math.min(partBytes, sizeBytes - part * partBytes),
  }));
}
