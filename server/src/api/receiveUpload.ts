import type { Config } from '../config.js';
import { ServiceError } from '../errors.js';
import type { ReceiveResult, WriteResult } from '../uploads/receivedFiles.js';

const chunkBytesMax = 1 << 20;

export interface UploadMessage {
  chunk?: { fileIndex: number; offsetBytes: number; data: Uint8Array } | undefined;
}

/** An open upload of a data set or of weights. */
export interface OpenUpload {
  /** Resource name. */
  name: string;
  files: readonly { fileName: string; sizeBytes: number }[];
  receivedBytes: readonly number[];
  write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult>;
}

export interface Receiving {
  config: Pick<Config, 'freeDiskBytesMin'>;
  /** The signal of the call. */
  signal: AbortSignal;
  onReceived(bytes: number): void;
}

/** Writes the chunks of a client's stream until it ends; throws the first error. */
export async function receiveChunks(
  messages: AsyncIterator<UploadMessage>,
  upload: OpenUpload,
  { config, signal, onReceived }: Receiving,
): Promise<void> {
  // Waits for one chunk at a time, so HTTP/2's flow control slows the sender down to the speed of the disk.
  for (;;) {
    const next = await messages.next();
    if (next.done === true) return;
    if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
    const { chunk } = next.value;
    if (chunk === undefined) throw invalid('chunk', 'chunks after the header', 'another message');
    const { fileIndex, offsetBytes, data } = chunk;
    if (data.length > chunkBytesMax)
      throw invalid('chunk.data', `at most ${chunkBytesMax} bytes`, String(data.length));
    const result = await upload.write(fileIndex, offsetBytes, data);
    if (result !== 'written') throw writeError(result, upload, fileIndex, offsetBytes, config);
    onReceived(data.length);
  }
}

/** The error for bytes that were refused. */
export function writeError(
  result: Exclude<WriteResult, 'written'>,
  { name, files, receivedBytes }: OpenUpload,
  fileIndex: number,
  offsetBytes: number,
  { freeDiskBytesMin }: Receiving['config'],
): ServiceError {
  switch (result) {
    case 'noFile':
      return invalid(
        'chunk.file_index',
        `an index of header.files, 0 to ${files.length - 1}`,
        String(fileIndex),
      );
    case 'wrongOffset':
      return new ServiceError('UPLOAD_OFFSET_WRONG', {
        fileIndex,
        offsetBytes,
        receivedBytes: receivedBytes[fileIndex] ?? 0,
      });
    case 'tooLong':
      return new ServiceError('UPLOAD_TOO_LONG', { fileIndex, sizeBytes: files[fileIndex]?.sizeBytes ?? 0 });
    case 'noSpace':
      return new ServiceError('DISK_FULL', { freeBytesMin: freeDiskBytesMin });
    case 'busy':
      return new ServiceError('UPLOAD_BUSY', { name });
  }
}

/** The error for an upload that is not complete. */
export function unfinished(
  result: Exclude<ReceiveResult, { outcome: 'done' }>,
  { name, files, receivedBytes }: OpenUpload,
): ServiceError {
  if (result.outcome === 'wrongHash') {
    return new ServiceError('UPLOAD_HASH_WRONG', {
      fileIndex: files.findIndex(({ fileName }) => fileName === result.fileName),
      fileName: result.fileName,
      expectedSha256: result.expected,
      actualSha256: result.actual,
    });
  }
  const missing = files
    .map((file, index) => ({ ...file, received: receivedBytes[index] ?? 0 }))
    .filter((file) => file.received < file.sizeBytes)
    .map((file) => `${file.fileName} has ${file.received} of ${file.sizeBytes} bytes`);
  return new ServiceError('UPLOAD_INCOMPLETE', { name, missing: missing.slice(0, 5).join(', ') });
}

export function invalid(field: string, expected: string, got: string): ServiceError {
  return new ServiceError('REQUEST_INVALID', { problems: [{ field, expected, got }] });
}
