import type { AsyncBuffer, FileMetaData } from 'hyparquet';
import { parquetHeader } from 'hyparquet/src/column.js';
import { decompressPage } from 'hyparquet/src/datapage.js';
import { DataError, describeValue } from './dataErrors.js';
import type { DataLimits } from './dataLimits.js';
import { parquetCodecs } from './parquetCodecs.js';
import type { TextColumn } from './parquetColumn.js';
import { checkRuns } from './parquetRuns.js';
import type { RegularFile } from './regularFile.js';
import { endOfThriftStruct } from './thriftBounds.js';

type ColumnChunk = NonNullable<FileMetaData['row_groups'][number]['columns'][number]['meta_data']>;

/** Throws unless all sizes of the group agree with each other and with the limits; the metadata has only this column. */
export async function checkGroup(
  file: RegularFile,
  buffer: AsyncBuffer,
  metadata: FileMetaData,
  index: number,
  { field, definitionLevelMax }: TextColumn,
  limits: DataLimits,
): Promise<void> {
  const place = `row group ${index}`;
  const invalid = (problem: string) => new DataError('PARQUET_INVALID', { file: file.name, place, problem });
  const group = metadata.row_groups[index]!;
  const column = group.columns[0]?.meta_data;
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
  await guarded(file, place, () => checkPages(buffer, column, rows, definitionLevelMax, limits));
}

/** Bytes of an empty text in a page: its length field. */
const textBytesMin = 4;

/** Page headers state how many values and bytes they unpack to: the sums must equal the footer's. */
async function checkPages(
  buffer: AsyncBuffer,
  column: ColumnChunk,
  rows: number,
  definitionLevelMax: number,
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
    // A dictionary may have more entries than the group has rows: Arrow writes all texts of a category into each group.
    const entries = page.dictionary_page_header?.num_values ?? 0;
    if (entries > Math.min(limits.parquetRowsMax, page.uncompressed_page_size / textBytesMin))
      throw new Error(`the dictionary at byte ${at} has ${entries} entries, more than it has room for`);
    if (reader.offset > bytes.byteLength || unpacked > limits.parquetColumnBytesMax || values > rows) {
      throw new Error(`the page at byte ${at} claims more than the group has`);
    }
    const packed = new Uint8Array(
      bytes,
      reader.offset - page.compressed_page_size,
      page.compressed_page_size,
    );
    checkPageRuns(packed, page, column.codec, definitionLevelMax);
  }
  if (values !== rows) throw new Error(`the pages hold ${values} values, ${rows} were expected`);
}

/** A page's levels say which rows have a text, its indices which dictionary entry that is. */
function checkPageRuns(
  packed: Uint8Array,
  page: ReturnType<typeof parquetHeader>,
  codec: ColumnChunk['codec'],
  definitionLevelMax: number,
): void {
  const { data_page_header: one, data_page_header_v2: two } = page;
  const levelBits = Math.ceil(Math.log2(definitionLevelMax + 1));
  const unpack = (bytes: Uint8Array, length: number) => decompressPage(bytes, length, codec, parquetCodecs);
  const checkIndices = (values: Uint8Array, at: number, encoding: string, count: number) => {
    if (encoding.endsWith('_DICTIONARY')) checkRuns(values, at + 1, values[at] ?? 0, count);
  };
  if (two !== undefined) {
    const levelsAt = two.repetition_levels_byte_length;
    const valuesAt = levelsAt + two.definition_levels_byte_length;
    if (!(levelsAt >= 0 && valuesAt >= levelsAt && valuesAt <= packed.length))
      throw new Error('the levels of a page reach beyond it');
    if (levelBits > 0) checkRuns(packed.subarray(0, valuesAt), levelsAt, levelBits, two.num_values);
    if (!two.encoding.endsWith('_DICTIONARY')) return;
    const values = packed.subarray(valuesAt);
    const unpacked =
      two.is_compressed === false ? values : unpack(values, page.uncompressed_page_size - valuesAt);
    checkIndices(unpacked, 0, two.encoding, two.num_values - two.num_nulls);
  } else if (one !== undefined) {
    const unpacked = unpack(packed, page.uncompressed_page_size);
    const view = new DataView(unpacked.buffer, unpacked.byteOffset, unpacked.byteLength);
    const levelsEnd = levelBits > 0 ? 4 + view.getUint32(0, true) : 0;
    if (levelBits > 0) checkRuns(unpacked.subarray(0, levelsEnd), 4, levelBits, one.num_values);
    checkIndices(unpacked, levelsEnd, one.encoding, one.num_values);
  }
}

/** Any error of the reader means that the file is invalid. */
export async function guarded<T>(file: RegularFile, place: string, read: () => Promise<T>): Promise<T> {
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
