import { isUtf8 } from 'node:buffer';
import { parquetMetadataAsync, parquetReadObjects, type AsyncBuffer, type FileMetaData } from 'hyparquet';
import { DataError, describeValue } from './dataErrors.js';
import type { DataLimits } from './dataLimits.js';
import { beyondEnd, wholeFile, type FilePart, type PartReading } from './filePart.js';
import type { InvalidRows } from './invalidRows.js';
import { checkGroup, guarded } from './parquetChecks.js';
import { parquetCodecs } from './parquetCodecs.js';
import { onlyColumn, textColumn, valueOf, type TextColumn } from './parquetColumn.js';
import type { RegularFile } from './regularFile.js';
import { endOfThriftStruct } from './thriftBounds.js';
import { piecesOfFields, type DocumentFields, type TextPiece } from './textPieces.js';

/**
 * Every row is a document, its text in the columns `fields`, read one row group at a time. Footer and page headers are checked against each
 * other first, since the reader allocates memory by what they claim: forty kilobytes can claim petabytes. Throws PARQUET_INVALID,
 * PARQUET_TOO_LARGE, FIELD_MISSING, UTF8_INVALID or DOCUMENT_TOO_LONG.
 */
export async function* readParquet(
  file: RegularFile,
  fields: DocumentFields,
  limits: DataLimits,
  rows: InvalidRows,
  { place, to }: PartReading = wholeFile(),
): AsyncGenerator<TextPiece> {
  const { buffer, metadata, columns, views } = await openParquet(file, fields, limits);
  const groups = metadata.row_groups;
  let row = groups.slice(0, place.at).reduce((sum, { num_rows: count }) => sum + Number(count), 0);
  while (place.at < Math.min(to, groups.length)) {
    const index = place.at;
    const rowCount = Number(groups[index]!.num_rows);
    const values: unknown[][] = [];
    for (const [at, column] of columns.entries()) {
      await checkGroup(file, buffer, views[at]!, index, column, limits);
      values.push(await readGroup(file, buffer, views[at]!, index, column, { row, rowCount }));
    }
    for (let offset = 0; offset < rowCount; offset++) {
      const number = row + offset + 1;
      const texts = rows.read(() =>
        fields.map((field, at) => textOf(values[at]![offset], file.name, field, number, at === 1, limits)),
      );
      if (texts !== undefined) yield* piecesOfFields(texts);
    }
    row += rowCount;
    place.at++;
  }
  if (place.at === groups.length) place.at = beyondEnd;
}

/**
 * Splits the file into parts of consecutive row groups; null if a row group is so large that several threads with one each would exceed
 * their planned memory. Throws DataError.
 */
export async function parquetParts(
  file: RegularFile,
  fields: DocumentFields,
  limits: DataLimits,
): Promise<FilePart[] | null> {
  const { metadata, views } = await openParquet(file, fields, limits);
  const parts: FilePart[] = [];
  for (const index of metadata.row_groups.keys()) {
    const chunks = views.map(({ row_groups: groups }) => groups[index]!.columns[0]?.meta_data);
    const bytes = chunks.reduce((sum, chunk) => sum + Number(chunk?.total_uncompressed_size), 0);
    // Also if the size is missing or not a number.
    if (!(bytes >= 0 && bytes <= groupPartsMax * limits.filePartBytes)) return null;
    const last = parts.at(-1);
    if (last === undefined || last.bytes + bytes > limits.filePartBytes)
      parts.push({ from: index, to: index + 1, bytes });
    else {
      last.to = index + 1;
      last.bytes += bytes;
    }
  }
  const last = parts.at(-1);
  if (last !== undefined) last.to = beyondEnd;
  return parts;
}

/** A group is in memory packed, unpacked, and as texts. */
const groupPartsMax = 2;

interface OpenParquet {
  buffer: AsyncBuffer;
  metadata: FileMetaData;
  columns: TextColumn[];
  /** Metadata for each column separately. */
  views: FileMetaData[];
}

async function openParquet(
  file: RegularFile,
  fields: DocumentFields,
  limits: DataLimits,
): Promise<OpenParquet> {
  const buffer = asyncBuffer(file, limits);
  const metadata = await readMetadata(file, buffer, limits);
  const columns = await guarded(file, 'schema', async () =>
    fields.map((field) => textColumn(metadata, field, file.name)),
  );
  return { buffer, metadata, columns, views: columns.map((column) => onlyColumn(metadata, column)) };
}

async function readGroup(
  file: RegularFile,
  buffer: AsyncBuffer,
  metadata: FileMetaData,
  index: number,
  column: TextColumn,
  { row, rowCount }: { row: number; rowCount: number },
): Promise<unknown[]> {
  const place = `row group ${index}`;
  const options = {
    file: buffer,
    metadata,
    columns: [column.path[0]!],
    rowStart: row,
    rowEnd: row + rowCount,
    compressors: parquetCodecs,
    parsers,
    geoparquet: false,
  };
  const rows = await guarded(file, place, () => parquetReadObjects(options));
  if (rows.length !== rowCount) {
    const problem = `expected ${rowCount} rows, got ${rows.length}`;
    throw new DataError('PARQUET_INVALID', { file: file.name, place, problem });
  }
  return rows.map((entry) => valueOf(entry, column));
}

/** Keeps invalid UTF-8 as bytes, so that the row can be reported. A JSON column is text like any other. */
const textFromBytes = (bytes: Uint8Array | undefined) =>
  bytes !== undefined && isUtf8(bytes) ? Buffer.from(bytes).toString('utf8') : bytes;
const parsers = { stringFromBytes: textFromBytes, jsonFromBytes: textFromBytes };

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
