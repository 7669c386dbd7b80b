import { isUtf8 } from 'node:buffer';
import { parquetMetadataAsync, parquetReadObjects, type AsyncBuffer, type FileMetaData } from 'hyparquet';
import { parquetHeader } from 'hyparquet/src/column.js';
import { decompressPage } from 'hyparquet/src/datapage.js';
import { DataError, describeValue } from './dataErrors.js';
import type { DataLimits } from './dataLimits.js';
import { parquetCodecs } from './parquetCodecs.js';
import { checkRuns } from './parquetRuns.js';
import type { RegularFile } from './regularFile.js';
import { endOfThriftStruct } from './thriftBounds.js';
import { piecesOfFields, type DocumentFields, type TextPiece } from './textPieces.js';

type Column = NonNullable<FileMetaData['row_groups'][number]['columns'][number]['meta_data']>;

/**
 * Every row is a document, its text in the columns `fields`, read a row group at a time. A footer or page header is only
 * believed where it agrees with the others, since the reader takes memory by what they say: forty kilobytes can claim
 * petabytes. Throws PARQUET_INVALID, PARQUET_TOO_LARGE, FIELD_MISSING, UTF8_INVALID or DOCUMENT_TOO_LONG.
 */
export async function* readParquet(
  file: RegularFile,
  fields: DocumentFields,
  limits: DataLimits,
): AsyncGenerator<TextPiece> {
  const buffer = asyncBuffer(file, limits);
  const metadata = await readMetadata(file, buffer, limits);
  for (const field of fields) checkField(file, metadata, field);
  let row = 0;
  for (const [index, group] of metadata.row_groups.entries()) {
    for (const field of fields) await checkGroup(file, buffer, metadata, index, field, limits);
    const rowEnd = row + Number(group.num_rows);
    const place = `row group ${index}`;
    const options = {
      file: buffer,
      metadata,
      columns: [...fields],
      rowStart: row,
      rowEnd,
      compressors: parquetCodecs,
      parsers,
      geoparquet: false,
    };
    const rows = await guarded(file, place, () => parquetReadObjects(options));
    if (rows.length !== Number(group.num_rows)) {
      throw new DataError('PARQUET_INVALID', {
        file: file.name,
        place,
        problem: `expected ${group.num_rows} rows, got ${rows.length}`,
      });
    }
    for (const [offset, entry] of rows.entries()) {
      const number = row + offset + 1;
      yield* piecesOfFields(
        fields.map((field, index) => textOf(entry[field], file.name, field, number, index === 1, limits)),
      );
    }
    row = rowEnd;
  }
}

/** Keeps what is not UTF-8 as bytes, so that the row can be named. */
const parsers = {
  stringFromBytes: (bytes: Uint8Array | undefined) =>
    bytes !== undefined && isUtf8(bytes) ? Buffer.from(bytes).toString('utf8') : bytes,
};

function textOf(
  value: unknown,
  file: string,
  field: string,
  row: number,
  isCompletion: boolean,
  limits: DataLimits,
): string {
  if (value instanceof Uint8Array) {
    throw new DataError('UTF8_INVALID', {
      file,
      place: `row ${row}`,
      byteOffset: null,
      got: `${value.length} bytes that are not`,
    });
  }
  if (typeof value !== 'string' || (isCompletion && value === ''))
    throw new DataError('FIELD_MISSING', { file, place: `row ${row}`, field, got: describeValue(value) });
  const bytesMax = limits.documentBytesMax;
  const got = 3 * value.length > bytesMax ? Buffer.byteLength(value) : 0;
  if (got > bytesMax) throw new DataError('DOCUMENT_TOO_LONG', { file, row, bytesMax, got });
  return value;
}

async function readMetadata(
  file: RegularFile,
  buffer: AsyncBuffer,
  limits: DataLimits,
): Promise<FileMetaData> {
  const place = 'footer';
  const invalid = (problem: string) => new DataError('PARQUET_INVALID', { file: file.name, place, problem });
  const smallestBytes = 12; // PAR1, length of the footer, PAR1
  if (file.sizeBytes < smallestBytes)
    throw invalid(`expected at least ${smallestBytes} bytes, got ${file.sizeBytes}`);
  const start = await file.read(0, 4);
  const tail = await file.read(file.sizeBytes - 8, 8);
  if (start.toString('latin1') !== 'PAR1' || tail.toString('latin1', 4) !== 'PAR1') {
    throw invalid('expected PAR1 at both ends, got something else: it is truncated or of another format');
  }
  const footerBytes = tail.readUInt32LE(0);
  if (footerBytes > file.sizeBytes - smallestBytes)
    throw invalid(
      `expected a footer inside the ${file.sizeBytes} bytes of the file, got one of ${footerBytes}`,
    );
  const max = limits.parquetFooterBytesMax;
  if (footerBytes > max)
    throw new DataError('PARQUET_TOO_LARGE', {
      file: file.name,
      place,
      what: 'bytes',
      max,
      got: footerBytes,
    });
  return await guarded(file, place, async () => {
    endOfThriftStruct(await file.read(file.sizeBytes - 8 - footerBytes, footerBytes), 0);
    return await parquetMetadataAsync(buffer, { geoparquet: false, initialFetchSize: footerBytes + 8 });
  });
}

function checkField(file: RegularFile, { schema }: FileMetaData, field: string): void {
  const columns = schema.slice(1);
  const element = columns.find(({ name }) => name === field);
  const got =
    columns
      .map(({ name }) => name)
      .slice(0, 20)
      .join(', ') || 'none';
  if (element === undefined)
    throw new DataError('FIELD_MISSING', { file: file.name, place: 'schema', field, got: `columns ${got}` });
  if (element.type !== 'BYTE_ARRAY' || element.repetition_type === 'REPEATED') {
    throw new DataError('FIELD_MISSING', {
      file: file.name,
      place: 'schema',
      field,
      got: `a column of type ${element.type ?? 'group'}`,
    });
  }
}

/** Throws unless all sizes of the group agree with each other and with the limits. */
async function checkGroup(
  file: RegularFile,
  buffer: AsyncBuffer,
  metadata: FileMetaData,
  index: number,
  field: string,
  limits: DataLimits,
): Promise<void> {
  const place = `row group ${index}`;
  const invalid = (problem: string) => new DataError('PARQUET_INVALID', { file: file.name, place, problem });
  const group = metadata.row_groups[index]!;
  const column = group.columns
    .map(({ meta_data: data }) => data)
    .find((data) => data?.path_in_schema.length === 1 && data.path_in_schema[0] === field);
  if (column === undefined) throw invalid(`expected the column "${field}", got none`);
  const bounded = (value: unknown, what: string, max: number): number => {
    const got = Number(value);
    if (!Number.isSafeInteger(got) || got < 0)
      throw invalid(`expected a number of ${what}, got ${describeValue(value)}`);
    if (got > max) throw new DataError('PARQUET_TOO_LARGE', { file: file.name, place, what, max, got });
    return got;
  };
  const rows = bounded(group.num_rows, 'rows', limits.parquetRowsMax);
  if (bounded(column.num_values, 'values', limits.parquetRowsMax) !== rows)
    throw invalid(`expected ${rows} values, got ${column.num_values}`);
  bounded(column.total_uncompressed_size, 'unpacked bytes', limits.parquetColumnBytesMax);
  bounded(column.total_compressed_size, 'packed bytes', limits.parquetColumnBytesMax);
  const isOptional = metadata.schema.some(
    ({ name, repetition_type: kind }) => name === field && kind !== 'REQUIRED',
  );
  await guarded(file, place, () => checkPages(buffer, column, rows, isOptional, limits));
}

/** Every page header states how many values and bytes will be unpacked: their sums must be what the footer says. */
async function checkPages(
  buffer: AsyncBuffer,
  column: Column,
  rows: number,
  isOptional: boolean,
  limits: DataLimits,
): Promise<void> {
  const start = Number(column.dictionary_page_offset || column.data_page_offset);
  const bytes = await buffer.slice(start, start + Number(column.total_compressed_size));
  const reader = { view: new DataView(bytes), offset: 0 };
  let values = 0;
  let unpacked = 0;
  while (reader.offset < bytes.byteLength - 1 && values < rows) {
    const at = start + reader.offset;
    endOfThriftStruct(new Uint8Array(bytes), reader.offset);
    const page = parquetHeader(reader);
    const data = page.data_page_header ?? page.data_page_header_v2;
    const claimed = [
      page.compressed_page_size,
      page.uncompressed_page_size,
      data?.num_values ?? page.dictionary_page_header?.num_values ?? 0,
    ];
    if (!claimed.every((claim) => Number.isSafeInteger(claim) && claim >= 0))
      throw new Error(`the page at byte ${at} has no sizes`);
    reader.offset += page.compressed_page_size;
    unpacked += page.uncompressed_page_size;
    values += data?.num_values ?? 0;
    if ((page.dictionary_page_header?.num_values ?? 0) > rows)
      throw new Error(`the dictionary at byte ${at} has more entries than the group has rows`);
    if (reader.offset > bytes.byteLength || unpacked > limits.parquetColumnBytesMax || values > rows) {
      throw new Error(`the page at byte ${at} claims more than the group has`);
    }
    const packed = new Uint8Array(
      bytes,
      reader.offset - page.compressed_page_size,
      page.compressed_page_size,
    );
    checkPageRuns(packed, page, column.codec, isOptional);
  }
  if (values !== rows) throw new Error(`the pages hold ${values} values, ${rows} were expected`);
}

/** The levels of a page say which rows have a text, its indices which entry of the dictionary that is. */
function checkPageRuns(
  packed: Uint8Array,
  page: ReturnType<typeof parquetHeader>,
  codec: Column['codec'],
  isOptional: boolean,
): void {
  const { data_page_header: one, data_page_header_v2: two } = page;
  const unpack = (bytes: Uint8Array, length: number) => decompressPage(bytes, length, codec, parquetCodecs);
  const checkIndices = (values: Uint8Array, at: number, encoding: string, count: number) => {
    if (encoding.endsWith('_DICTIONARY')) checkRuns(values, at + 1, values[at] ?? 0, count);
  };
  if (two !== undefined) {
    const levelsAt = two.repetition_levels_byte_length;
    const valuesAt = levelsAt + two.definition_levels_byte_length;
    if (!(levelsAt >= 0 && valuesAt >= levelsAt && valuesAt <= packed.length))
      throw new Error('the levels of a page reach beyond it');
    if (isOptional) checkRuns(packed.subarray(0, valuesAt), levelsAt, 1, two.num_values);
    if (!two.encoding.endsWith('_DICTIONARY')) return;
    const values = packed.subarray(valuesAt);
    const unpacked =
      two.is_compressed === false ? values : unpack(values, page.uncompressed_page_size - valuesAt);
    checkIndices(unpacked, 0, two.encoding, two.num_values - two.num_nulls);
  } else if (one !== undefined) {
    const unpacked = unpack(packed, page.uncompressed_page_size);
    const view = new DataView(unpacked.buffer, unpacked.byteOffset, unpacked.byteLength);
    const levelsEnd = isOptional ? 4 + view.getUint32(0, true) : 0;
    if (isOptional) checkRuns(unpacked.subarray(0, levelsEnd), 4, 1, one.num_values);
    checkIndices(unpacked, levelsEnd, one.encoding, one.num_values);
  }
}

/** Whatever the reader trips over is a fault of the file. */
async function guarded<T>(file: RegularFile, place: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    if (error instanceof DataError) throw error;
    throw new DataError(
      'PARQUET_INVALID',
      { file: file.name, place, problem: `not sound: ${(error as Error).message}` },
      { cause: error },
    );
  }
}

function asyncBuffer(file: RegularFile, limits: DataLimits): AsyncBuffer {
  const atOnceMax = Math.max(limits.parquetColumnBytesMax, limits.parquetFooterBytesMax + 8);
  return {
    byteLength: file.sizeBytes,
    async slice(start, end = file.sizeBytes) {
      const first = start < 0 ? file.sizeBytes + start : start;
      const length = end - first;
      if (!(first >= 0 && length >= 0 && end <= file.sizeBytes))
        throw new Error(`bytes ${first} to ${end} lie outside of the file`);
      if (length > atOnceMax) throw new Error(`${length} bytes at once are more than ${atOnceMax}`);
      const bytes = await file.read(first, length);
      return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + length) as ArrayBuffer;
    },
  };
}
