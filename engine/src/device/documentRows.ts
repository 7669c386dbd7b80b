/** Throws unless the begins are consistent: each document begins where it says, after the one before it. */
export function checkDocuments(begins: Int32Array, time: number): void {
  if (begins.length % time !== 0)
    throw new RangeError(`documents: expected whole sequences of ${time}, got ${begins.length} positions`);
  begins.forEach((begin, row) => {
    const position = row % time;
    const before = position === 0 ? 0 : begins[row - 1]!;
    if (begin !== before && begin !== position)
      throw new RangeError(
        `documents[${row}]: expected ${before}, as before it, or ${position}, where it is, got ${begin}`,
      );
  });
}

/** For each position one past the end of its document. */
export function documentEnds(begins: Int32Array, time: number): Int32Array {
  const ends = new Int32Array(begins.length);
  for (let row = begins.length - 1; row >= 0; row--) {
    const position = row % time;
    const isLast = position === time - 1 || begins[row + 1] === position + 1;
    ends[row] = isLast ? position + 1 : ends[row + 1]!;
  }
  return ends;
}
