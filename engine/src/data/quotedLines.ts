const quote = 0x22;
const [lineFeed, carriageReturn] = [0x0a, 0x0d];

/** Finds the ends of CSV lines outside of quotation marks. A doubled mark within them toggles twice, which has no effect. */
export class QuotedLines {
  private previous: number | undefined;

  constructor(
    /** The line ending; absent if the file has none. */
    private readonly lineEnd: Buffer | undefined,
    private isQuoted = false,
  ) {}

  /** Position after the first line end at or after `from`; -1 if this block, which must follow the previous ones, has none. */
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
 * Whether a position in CSV is within quotation marks, judged by what follows it. A mark that is not preceded by a delimiter or line end
 * does not open a text, and one that is not followed by these does not close it: in a valid file the first such mark gives the answer.
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
      // NUL does not count: the parser treats it as the end of its input.
      if (behind !== undefined && behind !== 0 && !divides(behind)) return !isOdd;
      start = block.indexOf(quote, end);
    }
  }
  return false;
}
