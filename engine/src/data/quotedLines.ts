const quote = 0x22;
const [lineFeed, carriageReturn] = [0x0a, 0x0d];

/** Finds where lines of CSV end outside of quotation marks. A mark that is doubled inside of them counts twice, which is as none. */
export class QuotedLines {
  private previous: number | undefined;

  constructor(
    /** What ends a line; absent where nothing does. */
    private readonly lineEnd: Buffer | undefined,
    private isQuoted = false,
  ) {}

  /** Place behind the first end of a line that is at `from` or behind it; -1 for none in this block, which is behind those before it. */
  behindEnd(block: Buffer, from: number): number {
    const last = this.lineEnd?.at(-1);
    const first = this.lineEnd?.length === 2 ? this.lineEnd[0] : undefined;
    let { previous, isQuoted } = this;
    for (let i = 0; i < block.length; i++) {
      const byte = block[i]!;
      if (byte === quote) isQuoted = !isQuoted;
      else if (byte === last && !isQuoted && i + 1 >= from && (first === undefined || previous === first))
        return i + 1;
      previous = byte;
    }
    [this.previous, this.isQuoted] = [previous, isQuoted];
    return -1;
  }
}

/**
 * Whether a place in CSV is in quotation marks, by what follows it. Marks that have something else before them than what divides columns
 * and lines do not open a text, and with something else behind them do not close one: in a file that is sound the first of those shows it.
 */
export async function startsQuoted(blocks: AsyncIterable<Buffer>, delimiter: string): Promise<boolean> {
  const divides = (byte: number): boolean =>
    byte === delimiter.charCodeAt(0) || byte === lineFeed || byte === carriageReturn;
  let isOdd = false;
  for await (const block of blocks) {
    for (let start = block.indexOf(quote); start >= 0;) {
      let end = start + 1;
      while (block[end] === quote) end++;
      const [before, behind] = [block[start - 1], block[end]];
      if (before !== undefined && !divides(before)) return !isOdd;
      if ((end - start) % 2 === 1) isOdd = !isOdd;
      // The parser takes a NUL for the end of what it has.
      if (behind !== undefined && behind !== 0 && !divides(behind)) return !isOdd;
      start = block.indexOf(quote, end);
    }
  }
  return false;
}
