import { createHash, randomBytes } from 'node:crypto';
import { mkdir, open, readdir, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { crc32c } from '@node-rs/crc32';
import { openWithoutLinks } from '@relora/engine/files';
import { allocateWithHeadroom } from '../headroom.js';
import { filesOf } from './diskFiles.js';
import { syncFolder } from './folders.js';
import { isDiskBroken, isOutOfFiles } from './storeError.js';

/** Size of the chunk that one checksum covers: damage is found without reading a whole file, and a range can be verified. */
export const chunkBytes = 8 * 2 ** 20;

/** What is stored about a blob: the SHA-256 of the whole and the CRC32C of each chunk. */
export interface BlobDigest {
  sizeBytes: number;
  /** Hexadecimal. */
  sha256: string;
  crcs: number[];
}

/** A blob that is open for reading, even if its name is removed meanwhile. Must be closed. */
export interface OpenBlob {
  name: string;
  sizeBytes: number;
  /**
   * Bytes from `start` up to, not including, `end`, in pieces of at most pieceBytes, each freshly allocated. Ends early if the blob does.
   */
  read(start: number, end: number, pieceBytes: number): AsyncGenerator<Uint8Array>;
  close(): Promise<void>;
}

export interface ListedBlob {
  name: string;
  sizeBytes: number;
  /** Time since it was put. */
  ageMs: number;
}

/**
 * Bytes by name, for example `jobs/…/artifacts/…/config.json`: words of letters, digits, `.`, `_` and `-`, separated by `/`. A blob becomes
 * visible under its name once it is complete and durable.
 */
export interface BlobStore {
  /** @param sizeBytes its length, if known */
  put(name: string, source: AsyncIterable<Uint8Array>, sizeBytes?: number): Promise<BlobDigest>;
  /** Undefined if it does not exist. */
  openRead(name: string): Promise<OpenBlob | undefined>;
  /** All blobs below a name, in no certain order. */
  list(prefix: string): AsyncGenerator<ListedBlob>;
  /** Removes the blob of this name and all below it. It is not an error if there are none. */
  remove(prefix: string): Promise<void>;
  /** Deletes what was left by puts that were interrupted at least `olderMs` ago. */
  removeUnfinished(olderMs: number): Promise<void>;
  close(): void;
}

/** Blobs as files in a folder. */
export class FolderBlobs implements BlobStore {
  constructor(private readonly folder: string) {}

  async put(name: string, source: AsyncIterable<Uint8Array>): Promise<BlobDigest> {
    const path = this.pathOf(name);
    const parent = dirname(path);
    await mkdir(parent, { recursive: true });
    const temporary = join(parent, `.tmp-${randomBytes(6).toString('hex')}`);
    const file = await open(temporary, 'wx', 0o600);
    try {
      const digester = new Digester();
      try {
        for await (const piece of source) {
          digester.add(piece);
          await file.writeFile(piece); // appends to the previous pieces
        }
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, path);
      await syncFolder(parent);
      return digester.finish();
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
  }

  async openRead(name: string): Promise<OpenBlob | undefined> {
    // The folder and its first level may be links that an operator made, to another disk; below that no links are followed.
    const words = wordsOf(name);
    const top = words.splice(0, words.length > 1 ? 1 : 0);
    const file = await openWithoutLinks(join(this.folder, ...top), words).catch((error: unknown) => {
      if (isOutOfFiles(error) || isDiskBroken(error)) throw error; // this says nothing about the blob
      return undefined;
    });
    if (file === undefined) return undefined;
    const stats = await file.stat();
    if (!stats.isFile()) {
      await file.close();
      return undefined;
    }
    return {
      name,
      sizeBytes: stats.size,
      read: (start, end, pieceBytes) => readPieces(file, start, end, pieceBytes),
      close: async () => await file.close(),
    };
  }

  async *list(prefix: string): AsyncGenerator<ListedBlob> {
    const folder = this.pathOf(prefix);
    const entries = await readdir(folder, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return [];
      throw error;
    });
    for (const entry of entries) {
      const name = `${prefix}/${entry.name}`;
      if (entry.isDirectory()) yield* this.list(name);
      else if (entry.isFile() && !entry.name.startsWith('.tmp-')) {
        const stats = await stat(join(folder, entry.name)).catch(() => undefined); // it may have been removed meanwhile
        if (stats !== undefined) yield { name, sizeBytes: stats.size, ageMs: Date.now() - stats.mtimeMs };
      }
    }
  }

  async remove(prefix: string): Promise<void> {
    await rm(this.pathOf(prefix), { recursive: true, force: true });
  }

  close(): void {}

  async removeUnfinished(olderMs: number): Promise<void> {
    for await (const { path } of filesOf(this.folder)) {
      if (!basename(path).startsWith('.tmp-')) continue;
      const stats = await stat(path).catch(() => undefined);
      if (stats !== undefined && Date.now() - stats.mtimeMs > olderMs) await rm(path, { force: true });
    }
  }

  private pathOf(name: string): string {
    return join(this.folder, ...wordsOf(name));
  }
}

/** We make names from checked ids: an invalid one is a fault of ours. */
export function wordsOf(name: string): string[] {
  const words = name.split('/');
  if (words.some((word) => !/^[\w.-]+$/.test(word) || /^\.+$/.test(word)))
    throw new Error(`${JSON.stringify(name)} is not the name of a blob`);
  return words;
}

/** Computes digests of the bytes that pass through. */
export class Digester {
  private readonly hash = createHash('sha256');
  private readonly crcs: number[] = [];
  private crc = 0;
  private sizeBytes = 0;

  add(piece: Uint8Array): void {
    this.hash.update(piece);
    for (let offset = 0; offset < piece.length;) {
      const room = chunkBytes - (this.sizeBytes % chunkBytes);
      const part = piece.subarray(offset, offset + room);
      this.crc = crc32c(Buffer.from(part.buffer, part.byteOffset, part.length), this.crc);
      offset += part.length;
      this.sizeBytes += part.length;
      if (this.sizeBytes % chunkBytes === 0) this.endChunk();
    }
  }

  finish(): BlobDigest {
    if (this.sizeBytes % chunkBytes !== 0) this.endChunk();
    return { sizeBytes: this.sizeBytes, sha256: this.hash.digest('hex'), crcs: this.crcs };
  }

  private endChunk(): void {
    this.crcs.push(this.crc);
    this.crc = 0;
  }
}

/** Each read has the cost of waking a thread, so it reads many pieces; the next read runs while they are used. */
const readBytes = 1 << 20;

async function* readPieces(
  file: FileHandle,
  start: number,
  end: number,
  pieceBytes: number,
): AsyncGenerator<Uint8Array> {
  // Each piece has memory of its own, so that it can be freed while others of the same read still wait.
  const read = async (position: number): Promise<Buffer[]> => {
    const pieces: Buffer[] = [];
    const stop = Math.min(position + readBytes, end);
    for (let at = position; at < stop; at += pieceBytes)
      pieces.push(allocateWithHeadroom(Math.min(pieceBytes, stop - at)));
    let { bytesRead: left } = await file.readv(pieces, position);
    return pieces.flatMap((piece) => {
      const read = piece.subarray(0, left);
      left -= read.length;
      return read.length > 0 ? [read] : [];
    });
  };
  let ahead = start < end ? read(start) : undefined;
  try {
    for (let position = start; ahead !== undefined;) {
      const pieces = await ahead;
      position += pieces.reduce((sum, { length }) => sum + length, 0);
      ahead = pieces.length > 0 && position < end ? read(position) : undefined;
      ahead?.catch(() => {}); // reported when its turn comes
      for (let piece = pieces.shift(); piece !== undefined; piece = pieces.shift()) yield piece;
    }
  } finally {
    await ahead?.catch(() => {}); // then the file may be closed
  }
}
