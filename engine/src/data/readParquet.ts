import type { FileHandle } from 'node:fs/promises';
import { parquetMetadataAsync, parquetReadObjects, type AsyncBuffer, type FileMetaData } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { DataError } from './dataError.js';
import type { DataLimits } from './limits.js';
import { checkWellFormed, openSource, type DocumentPiece, type SourceFile } from './sourceFile.js';

/** Each row of a Parquet file is one document, the text in the column `field`. Read a row group at a time. */
export async function* readParquet(file: SourceFile, field: string, limits: DataLimits): AsyncGenerator<DocumentPiece> {
  const { handle, sizeBytes } = await openSource(file);
  try {
    const buffer = asyncBuffer(handle, sizeBytes);
    const metadata = await readMetadata(file, buffer, limits);
    const column = metadata.schema.slice(1).find((element) => element.name === field);
    if (column === undefined) {
      const names = metadata.schema.slice(1).map((element) => element.name);
      throw new DataError('PARQUET_INVALID', `${file.name} should have a column "${field}", it has ${names.join(', ') || 'none'}`);
    }
    let row = 0;
    for (const [index, group] of metadata.row_groups.entries()) {
      checkSize(file, metadata, index, field, limits);
      const rowEnd = row + Number(group.num_rows);
      const rows = await guarded(file, () =>
        parquetReadObjects({ file: buffer, metadata, columns: [field], rowStart: row, rowEnd, compressors }),
      );
      for (const [offset, entry] of rows.entries()) {
        const place = `${file.name} row ${row + offset + 1}`;
        const text: unknown = entry[field];
        if (typeof text !== 'string') throw new DataError('FIELD_MISSING', `${place} should have a text in the column "${field}", it has ${text === null ? 'null' : typeof text}`);
        yield { text: checkWellFormed(text, place), isLast: true };
      }
      row = rowEnd;
    }
  } finally {
    await handle.close();
  }
}

async function readMetadata(file: SourceFile, buffer: AsyncBuffer, limits: DataLimits): Promise<FileMetaData> {
  const minimum = 12; // magic, footer length, magic
  if (buffer.byteLength < minimum) throw new DataError('PARQUET_INVALID', `${file.name} is too short to be Parquet: ${buffer.byteLength} bytes`);
  const tail = Buffer.from(await buffer.slice(buffer.byteLength - 8));
  if (tail.toString('latin1', 4) !== 'PAR1') throw new DataError('PARQUET_INVALID', `${file.name} does not end like Parquet: it is truncated or of another format`);
  const footerBytes = tail.readUInt32LE(0);
  if (footerBytes > Math.min(limits.parquetFooterBytesMax, buffer.byteLength - minimum)) {
    throw new DataError('PARQUET_INVALID', `${file.name} claims a footer of ${footerBytes} bytes in a file of ${buffer.byteLength}, the limit is ${limits.parquetFooterBytesMax}`);
  }
  return await guarded(file, () => parquetMetadataAsync(buffer));
}

/** Before anything of a row group is allocated. */
function checkSize(file: SourceFile, metadata: FileMetaData, index: number, field: string, limits: DataLimits): void {
  const chunk = metadata.row_groups[index]!.columns.find((entry) => entry.meta_data?.path_in_schema[0] === field)?.meta_data;
  const bytes = Number(chunk?.total_uncompressed_size ?? 0);
  if (!(bytes >= 0 && bytes <= limits.rowGroupBytesMax)) {
    throw new DataError('PARQUET_INVALID', `${file.name} has ${bytes} bytes of "${field}" in row group ${index}, the limit is ${limits.rowGroupBytesMax}`);
  }
}

/** Whatever the reader trips over is a fault of the file. */
async function guarded<T>(file: SourceFile, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    throw new DataError('PARQUET_INVALID', `${file.name} is not sound Parquet: ${(error as Error).message}`, { cause: error });
  }
}

function asyncBuffer(handle: FileHandle, byteLength: number): AsyncBuffer {
  return {
    byteLength,
    async slice(start, end = byteLength) {
      const first = start < 0 ? byteLength + start : start;
      if (!(first >= 0 && end >= first && end <= byteLength)) throw new Error(`a part from byte ${first} to ${end} lies outside of the file`);
      const bytes = new Uint8Array(end - first);
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await handle.read(bytes, done, bytes.length - done, first + done);
        if (bytesRead === 0) throw new Error(`the file ended at byte ${first + done}`);
        done += bytesRead;
      }
      return bytes.buffer;
    },
  };
}
