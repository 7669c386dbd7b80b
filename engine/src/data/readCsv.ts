import { Readable } from 'node:stream';
import { CsvError, parse } from 'csv-parse';
import { DataError, listNames } from './dataErrors.js';
import type { InvalidRows } from './invalidRows.js';
import { withoutMark } from './readText.js';
import { decodeUtf8, piecesOfFields, type DocumentFields, type TextPiece } from './textPieces.js';

/** With `info`: where the parser stands after the record. */
interface Parsed {
  record: Buffer[];
  info: { lines: number; bytes: number };
}

/**
 * Rows of CSV with the names of the columns in the first: each is a document, its text in the columns `fields`. Columns are
 * divided by commas, semicolons or tabs, whichever the first row has. Throws CSV_INVALID, FIELD_MISSING or UTF8_INVALID
 * with row and line.
 */
export async function* readCsv(
  blocks: AsyncIterable<Buffer>,
  file: string,
  fields: DocumentFields,
  rowBytesMax: number,
  rows: InvalidRows,
): AsyncGenerator<TextPiece> {
  const { delimiter, all } = await delimiterOf(withoutMark(blocks, () => {}));
  const parser = parse({
    delimiter,
    encoding: null, // bytes: only what is read has to be UTF-8
    info: true,
    max_record_size: rowBytesMax,
    relax_column_count: true, // reported below, with the row
    skip_empty_lines: true,
  });
  const source = Readable.from(all, { objectMode: false });
  source.on('error', (error) => parser.destroy(error));
  source.pipe(parser);
  let places: number[] | undefined;
  let columnCount = 0;
  let number = 0;
  try {
    for await (const { record, info } of parser as AsyncIterable<Parsed>) {
      if (places === undefined) {
        places = placesOf(record, file, fields);
        columnCount = record.length;
        continue;
      }
      const place = `row ${++number}, which ends in line ${info.lines}`;
      const texts = rows.read(() => {
        if (record.length !== columnCount)
          throw new DataError('CSV_INVALID', {
            file,
            place,
            problem: `expected ${columnCount} columns, got ${record.length}`,
          });
        return places!.map((column, index) => {
          const text = decodeUtf8(record[column]!, file, 0, `${place}, column ${column + 1}, `);
          if (index === 1 && text === '')
            throw new DataError('FIELD_MISSING', { file, place, field: fields[1]!, got: '""' });
          return text;
        });
      });
      if (texts !== undefined) yield* piecesOfFields(texts);
    }
  } catch (error) {
    if (!(error instanceof CsvError)) throw error;
    const problem = error.message.slice(0, 300);
    throw new DataError('CSV_INVALID', { file, place: `row ${number + 1}`, problem }, { cause: error });
  } finally {
    source.destroy();
    parser.destroy();
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

/** What divides the columns of the first line, and all blocks, that line among them. */
async function delimiterOf(
  blocks: AsyncIterable<Buffer>,
): Promise<{ delimiter: string; all: AsyncIterable<Buffer> }> {
  const iterator = blocks[Symbol.asyncIterator]();
  const first = await iterator.next();
  const start = first.done ? '' : first.value.toString('latin1', 0, 1 << 16);
  // Names in quotation marks may have any of them.
  const line = start.split('\n', 1)[0]!.replace(/"[^"]*"/g, '');
  const count = (character: string) => line.split(character).length;
  const delimiter = ['\t', ';'].find((other) => count(other) > count(',')) ?? ',';
  async function* all(): AsyncGenerator<Buffer> {
    if (!first.done) yield first.value;
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value;
  }
  return { delimiter, all: all() };
}
