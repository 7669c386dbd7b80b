/** Where a row of a file begins: its byte, or in Parquet its row group, with the number of rows and lines before it. */
export interface RowPlace {
  at: number;
  rows: number;
  lines: number;
}

/** Beyond the end of every file: the place after the last row. */
export const beyondEnd = Number.MAX_SAFE_INTEGER;

/**
 * State of reading a part of a file: the rows that begin before `to`. Reading moves the place from the first row to the first one not read.
 */
export interface PartReading {
  place: RowPlace;
  to: number;
}

export function wholeFile(): PartReading {
  return { place: { at: 0, rows: 0, lines: 0 }, to: beyondEnd };
}

/** A range of a file, in bytes or row groups. A row belongs to the range in which it begins. */
export interface FilePart {
  from: number;
  to: number;
  /** Approximate bytes of text in it. */
  bytes: number;
}

/** Splits a file into ranges of that many bytes. */
export function partsOfBytes(sizeBytes: number, partBytes: number): FilePart[] {
  const count = Math.ceil(sizeBytes / partBytes);
  return Array.from({ length: count }, (_, part) => ({
    from: part * partBytes,
    to: part + 1 === count ? beyondEnd : (part + 1) * partBytes,
    bytes: Math.min(partBytes, sizeBytes - part * partBytes),
  }));
}
