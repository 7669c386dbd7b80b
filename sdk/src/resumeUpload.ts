import { createHash, randomBytes } from 'node:crypto';
import { open, stat } from 'node:fs/promises';
import { ReloraError } from './errors.js';
import { sha256Of } from './fileDigest.js';
import type { Patience } from './patience.js';

/**
 * Where the bytes of a file are: on this machine, in memory, or behind a function that reads them from an offset; null if there are none to
 * send.
 */
export type ByteSource =
  | { path: string }
  | { content: string | Uint8Array }
  | { read(offsetBytes: number): AsyncIterable<Uint8Array> }
  | null;

/** What the server has of an upload. */
interface Received {
  files: readonly { receivedBytes: number }[];
}

export interface FileChunk {
  fileIndex: number;
  offsetBytes: number;
  data: Buffer;
}

interface ResumeOptions<Resource extends Received> {
  sources: readonly ByteSource[];
  /** Opens the upload again and sends the missing chunks. */
  upload(chunks: AsyncIterable<FileChunk>): Promise<Resource>;
  /** What the server has so far; undefined if nothing. */
  known(): Promise<Resource | undefined>;
  onSent(bytes: number): void;
}

const chunkBytes = 256 << 10;
/** Each read has the cost of waking a thread, so it reads several chunks. */
const blockBytes = 2 << 20;
/** A server notices a broken connection, and releases its upload, within a minute and a half. */
const busyMsMax = 100_000;

/** Uploads what is missing, again after each interruption. */
export async function resumeUpload<Resource extends Received>(
  { sources, upload, known: lookUp, onSent }: ResumeOptions<Resource>,
  patience: Patience,
): Promise<Resource> {
  let known = await lookUp();
  let receivedBytes = totalReceived(known);
  let busySinceMs: number | undefined;
  for (;;) {
    try {
      const received = sources.map((_, index) => known?.files[index]?.receivedBytes ?? 0);
      return await upload(chunks(sources, received, onSent));
    } catch (error) {
      // The connection of an earlier attempt broke, and the server, which can be reached, has not noticed that yet.
      const isBusy = error instanceof ReloraError && error.code === 'ABORTED';
      if (isBusy && performance.now() - (busySinceMs ??= performance.now()) < busyMsMax) patience.progress();
      // The server noticed the end of an earlier attempt only after our look-up, and stored what that had sent.
      const isPassed = error instanceof ReloraError && error.reason === 'UPLOAD_OFFSET_WRONG';
      const assumed = totalReceived(known);
      if (isPassed) {
        known = await lookUp();
        if (totalReceived(known) !== assumed) continue;
      }
      await patience.pause(error);
    }
    known = await lookUp();
    if (totalReceived(known) > receivedBytes) {
      receivedBytes = totalReceived(known);
      busySinceMs = undefined;
      patience.progress();
    }
  }
}

function totalReceived(received: Received | undefined): number {
  return received?.files.reduce((sum, file) => sum + file.receivedBytes, 0) ?? 0;
}

async function* chunks(
  sources: readonly ByteSource[],
  received: readonly number[],
  onSent: (bytes: number) => void,
): AsyncGenerator<FileChunk> {
  let sent = 0;
  for (const [fileIndex, source] of sources.entries()) {
    let offsetBytes = received[fileIndex]!;
    sent += offsetBytes;
    for await (const data of pieces(source, offsetBytes)) {
      yield { fileIndex, offsetBytes, data };
      offsetBytes += data.length;
      sent += data.length;
      onSent(sent);
    }
  }
}

async function* pieces(source: ByteSource, offset: number): AsyncGenerator<Buffer> {
  if (source === null) return;
  if ('read' in source) {
    for await (const { buffer, byteOffset, length } of source.read(offset))
      for (let start = 0; start < length; start += chunkBytes)
        yield Buffer.from(buffer, byteOffset + start, Math.min(chunkBytes, length - start));
    return;
  }
  if ('content' in source) {
    const bytes = Buffer.from(source.content as Uint8Array);
    for (let start = offset; start < bytes.length; start += chunkBytes)
      yield bytes.subarray(start, start + chunkBytes);
    return;
  }
  const handle = await open(source.path, 'r');
  try {
    for (let position = offset; ;) {
      const block = Buffer.allocUnsafeSlow(blockBytes);
      const { bytesRead } = await handle.read(block, 0, blockBytes, position);
      if (bytesRead === 0) return;
      position += bytesRead;
      for (let start = 0; start < bytesRead; start += chunkBytes)
        yield block.subarray(start, Math.min(start + chunkBytes, bytesRead));
    }
  } finally {
    await handle.close();
  }
}

/** Size and hash of a file to send. */
export async function measure(
  source: { path: string } | { content: string | Uint8Array },
): Promise<{ sizeBytes: number; sha256: string }> {
  if ('content' in source) {
    const bytes = Buffer.from(source.content as Uint8Array);
    return { sizeBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
  }
  try {
    return { sizeBytes: (await stat(source.path)).size, sha256: await sha256Of(source.path) };
  } catch (error) {
    throw unreadable(source.path, error);
  }
}

function unreadable(path: string, error: unknown): ReloraError {
  const { code, message } = error as NodeJS.ErrnoException;
  const why = code === 'ENOENT' ? 'there is no such file' : code === 'EISDIR' ? 'it is a folder' : message;
  const detail = { code: 'INVALID_ARGUMENT', reason: 'FILE_UNREADABLE' } as const;
  return new ReloraError(`${path} cannot be read: ${why}`, detail, { cause: error });
}

/** The messages of an upload: its header, then the bytes. */
export async function* messagesOf<Header>(
  header: Header,
  chunks: AsyncIterable<FileChunk>,
): AsyncGenerator<{ header: Header } | { chunk: FileChunk }> {
  yield { header };
  for await (const chunk of chunks) yield { chunk };
}

/** An id for something unnamed, so that its upload can be resumed. */
export function newId(kind: string): string {
  return `${kind}-${Date.now().toString(36)}-${randomBytes(4).toString('hex')}`;
}
