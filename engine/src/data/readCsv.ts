import { CsvError, parse, type Parser } from 'csv-parse';
import { DataError, listNames } from './dataErrors.js';
import { beyondEnd, wholeFile, type PartReading } from './filePart.js';
import type { InvalidRows } from './invalidRows.js';
import { QuotedLines, startsQuoted } from './quotedLines.js';
import { withoutMark } from './readText.js';
import { decodeUtf8, piecesOfFields, type DocumentFields, type TextPiece } from './textPieces.js';

/** The bytes of a file from a position on. */
type BlocksFrom = (position: number) => AsyncIterable<Buffer>;

/**
 * Rows of CSV, with column names in the first row: each row is a document, its text in the columns `fields`. The delimiter is a comma,
 * semicolon or tab, whichever the first row has. Throws CSV_INVALID, FIELD_MISSING or UTF8_INVALID with row and line.
 */
export async function* readCsv(
  blocksFrom: BlocksFrom,
  file: string,
  fields: DocumentFields,
  rowBytesMax: number,
  rows: InvalidRows,
  part: PartReading = wholeFile(),
): AsyncGenerator<TextPiece> {
  const { place } = part;
  try {
    const head = await headOf(blocksFrom, rowBytesMax);
    if (head === undefined) {
      place.at = beyondEnd;
      return;
    }
    const places = placesOf(head.names, file, fields);
    let isHead = place.at < head.end;
    const records = new Records(head.delimiter, rowBytesMax, head.lineEnd, place.lines);
    for await (const found of records.of(blocksOfPart(blocksFrom(place.at), part, head.lineEnd))) {
      for (const { record, lines } of found) {
        if (isHead) {
          isHead = false;
          continue;
        }
        const where = `row ${++place.rows}, which ends in line ${lines}`;
        const texts = rows.read(() => {
          if (record.length !== head.names.length)
            throw new DataError('CSV_INVALID', {
              file,
              place: where,
              problem: `expected ${head.names.length} columns, got ${record.length}`,
            });
          return places.map((column, index) => {
            const text = decodeUtf8(record[column]!, file, 0, `${where}, column ${column + 1}, `);
            if (index === 1 && text === '')
              throw new DataError('FIELD_MISSING', { file, place: where, field: fields[1]!, got: '""' });
            return text;
          });
        });
        if (texts !== undefined) yield* piecesOfFields(texts);
      }
    }
    place.lines = records.lines;
  } catch (error) {
    if (!(error instanceof CsvError)) throw error;
    const problem = error.message.slice(0, 300);
    const where = `row ${place.rows + 1}`;
    throw new DataError('CSV_INVALID', { file, place: where, problem }, { cause: error });
  }
}

/** Where the first row at or after a byte appears to begin; correct for a valid file. */
export async function csvRowFrom(blocksFrom: BlocksFrom, from: number, rowBytesMax: number): Promise<number> {
  const head = await headOf(blocksFrom, rowBytesMax);
  if (head === undefined) return beyondEnd;
  let position = from - 2; // the previous line's end may have two bytes
  const isQuoted = await startsQuoted(blocksFrom(position), head.delimiter);
  const lines = new QuotedLines(head.lineEnd, isQuoted);
  for await (const block of blocksFrom(position)) {
    const end = lines.behindEnd(block, from - position);
    if (end >= 0) return position + end;
    position += block.length;
  }
  return beyondEnd;
}

/** The blocks up to the first row that is not in the part; its position becomes the place. */
async function* blocksOfPart(
  blocks: AsyncIterable<Buffer>,
  { place, to }: PartReading,
  lineEnd: Buffer | undefined,
): AsyncGenerator<Buffer> {
  let position = place.at;
  const lines = new QuotedLines(lineEnd);
  const unmarked = position > 0 ? blocks : withoutMark(blocks, (markBytes) => (position = markBytes));
  for await (const block of unmarked) {
    const end = to === beyondEnd ? -1 : lines.behindEnd(block, to - position);
    if (end >= 0) {
      yield block.subarray(0, end);
      place.at = position + end;
      return;
    }
    yield block;
    position += block.length;
  }
  place.at = beyondEnd;
}

/** The first row, and the file's format. */
interface CsvHead {
  names: Buffer[];
  /** The byte after the first row. */
  end: number;
  delimiter: string;
  /** Absent if nothing follows the first row. */
  lineEnd: Buffer | undefined;
}

/** Undefined for a file without rows. */
async function headOf(blocksFrom: BlocksFrom, rowBytesMax: number): Promise<CsvHead | undefined> {
  let markBytes = 0;
  const blocks = withoutMark(blocksFrom(0), (bytes) => (markBytes = bytes));
  const first = await blocks.next();
  if (first.done) return undefined;
  const delimiter = delimiterOf(first.value);
  // In small blocks: parsing beyond the first row is wasted.
  async function* all(): AsyncGenerator<Buffer> {
    for (let start = 0; start < first.value.length; start += headBytes)
      yield first.value.subarray(start, start + headBytes);
    yield* blocks;
  }
  const records = new Records(delimiter, rowBytesMax, undefined, 0);
  for await (const [found] of records.of(all()))
    if (found !== undefined) {
      const { record: names, bytes } = found;
      return { names, end: markBytes + bytes, delimiter, lineEnd: records.lineEnd };
    }
  return undefined;
}

const headBytes = 1 << 14;

interface CsvRecord {
  record: Buffer[];
  /** The line in which it ends. */
  lines: number;
  /** Parsed bytes up to its end. */
  bytes: number;
}

/** Parses blocks one at a time, so that the rows before an error do not depend on the block size. */
class Records {
  private readonly parser: Parser;
  private found: CsvRecord[] = [];

  /** @param linesBefore lines before the first block, for line numbers in the parser's errors */
  constructor(delimiter: string, rowBytesMax: number, lineEnd: Buffer | undefined, linesBefore: number) {
    this.parser = parse({
      delimiter,
      encoding: null, // bytes: only what is used has to be UTF-8
      max_record_size: rowBytesMax,
      ...(lineEnd && { record_delimiter: lineEnd }), // otherwise the parser detects it
      relax_column_count: true, // reported by the reader of the rows, with the row
      skip_empty_lines: true,
      on_record: (record: unknown, { lines, bytes }) => {
        this.found.push({ record: record as Buffer[], lines, bytes });
        return null;
      },
    });
    this.parser.on('error', () => {}); // the error reaches whoever feeds the parser
    (this.parser.info as { lines: number }).lines += linesBefore;
  }

  /** Line ends so far, from the beginning of the file. */
  get lines(): number {
    return this.parser.info.lines - 1;
  }

  /** The record separator; undefined if none was seen. */
  get lineEnd(): Buffer | undefined {
    return this.parser.options.record_delimiter[0] as Buffer | undefined;
  }

  async *of(blocks: AsyncIterable<Buffer>): AsyncGenerator<CsvRecord[]> {
    try {
      for await (const block of blocks) yield* this.parsed((done) => this.parser.write(block, done));
      yield* this.parsed((done) => this.parser.end(done));
    } finally {
      this.parser.destroy();
    }
  }

  private async *parsed(feed: (done: (fault?: Error | null) => void) => void): AsyncGenerator<CsvRecord[]> {
    const fault = await new Promise<Error | null | undefined>((resolve) => feed(resolve));
    const found = this.found;
    this.found = [];
    yield found;
    if (fault) throw fault;
  }
}

function placesOf(header: Buffer[], file: string, fields: DocumentFields): number[] {
  const names = header.map((bytes) => bytes.toString('utf8').trim());
  return fields.map((field) => {
    const places = [...names.keys()].filter((place) => names[place] === field);
    if (places.length === 1) return places[0]!;
    const got = places.length === 0 ? `columns ${listNames(names)}` : `${places.length} columns of that name`;
    throw new DataError('FIELD_MISSING', { file, place: 'the first row', field, got });
  });
}

/** The delimiter in the first line. */
function delimiterOf(firstBlock: Buffer): string {
  const start = firstBlock.toString('latin1', 0, 1 << 16);
  // Quoted names may contain any of them.
  const line = start.split('\n', 1)[0]!.replace(/"[^"]*"/g, '');
  const count = (character: string) => line.split(character).length;
  return ['\t', ';'].find((other) => count(other) > count(',')) ?? ',';
}
