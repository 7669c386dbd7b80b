import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { endianness } from 'node:os';
import { join } from 'node:path';
import { isDiskFault } from '../io/diskFault.js';
import { DataError } from './dataErrors.js';
import type { ShardEntry } from './manifest.js';

/** Called with a file of a shard before it is first read. */
export type FileCheck = (file: { descriptor: number; name: string; sha256: string; stamp: string }) => void;

/**
 * Tokens of one part of a data set, read by position from its shards; only the requested tokens are in memory, so a part may be larger than
 * memory. Files are read, not mapped: truncating a file then causes an error message, whereas a mapping would crash the process. Reads
 * block their thread: a run has a separate one for them (batchFeed.ts), and the main thread reads little.
 */
export class TokenSplit {
  private readonly starts: number[] = [];
  private readonly files = new Map<string, { descriptor: number; stamp: string }>();
  /** Buffer of the last read; grows to the largest read. */
  private bytes = new Uint8Array(0);
  readonly tokenCount: number;

  constructor(
    private readonly folder: string,
    private readonly shards: readonly ShardEntry[],
    /** 2 or 4, little-endian. */
    private readonly tokenBytes: number,
    private readonly check: FileCheck = () => {},
  ) {
    let start = 0;
    for (const shard of shards) {
      this.starts.push(start);
      start += shard.tokens;
    }
    this.tokenCount = start;
  }

  /** Tokens position … position + count - 1; they must exist. */
  read(position: number, count: number): Int32Array {
    const tokens = new Int32Array(count);
    this.fill(tokens, position);
    return tokens;
  }

  /** The same into a given array. */
  fill(tokens: Int32Array, position: number): void {
    const count = tokens.length;
    if (!(position >= 0 && position + count <= this.tokenCount)) {
      throw new RangeError(`Tokens ${position} to ${position + count} of ${this.tokenCount}`);
    }
    for (const { entry, first, start, end } of this.partsOf(position, count))
      this.readShard(entry, first, tokens.subarray(start, end));
  }

  /** The shard of a token, and its position in it. */
  placeOf(position: number): { file: string; first: number } {
    const shard = this.starts.findLastIndex((start) => start <= position);
    return { file: this.shards[shard]!.file, first: position - this.starts[shard]! };
  }

  /** Sets each of the tokens, read from `position` on, that is not to be learned to -1. */
  mask(position: number, tokens: Int32Array): void {
    for (const { entry, first, start, end } of this.partsOf(position, tokens.length)) {
      if (entry.mask === undefined) continue;
      const bitAt = this.bitsOf(entry.mask, first, end - start);
      for (let at = start; at < end; at++) if (bitAt(at - start) === 0) tokens[at] = -1;
    }
  }

  /** Sets 1 for each of these tokens, read from `position` on, that ends a document, and 0 for the others. */
  markEnds(position: number, tokens: Int32Array, endOfTextId: number, ends: Uint8Array): void {
    for (const { entry, first, start, end } of this.partsOf(position, tokens.length)) {
      if (entry.ends === undefined)
        for (let at = start; at < end; at++) ends[at] = tokens[at] === endOfTextId ? 1 : 0;
      else {
        const bitAt = this.bitsOf(entry.ends, first, end - start);
        for (let at = start; at < end; at++) ends[at] = bitAt(at - start);
      }
    }
  }

  /** Throws DataError DATASET_CORRUPT if a file has changed since it was opened. */
  assertUnchanged(): void {
    for (const [file, { descriptor, stamp }] of this.files) {
      const now = stampOf(descriptor);
      if (now === stamp) continue;
      const [expected, got] = [stamp, now].map((each) => `a file of ${each}`);
      throw new DataError('DATASET_CORRUPT', {
        file,
        expected: `${expected}, as when the run began`,
        got: got!,
      });
    }
  }

  close(): void {
    for (const { descriptor } of this.files.values()) closeSync(descriptor);
    this.files.clear();
  }

  /** The location of tokens: in each shard from `first` on, and their range `start` to `end` within the request. */
  private *partsOf(
    position: number,
    count: number,
  ): Generator<{ entry: ShardEntry; first: number; start: number; end: number }> {
    let shard = this.shardAt(position);
    for (let start = 0; start < count; shard++) {
      const entry = this.shards[shard]!;
      const first = position + start - this.starts[shard]!;
      const end = Math.min(count, start + entry.tokens - first);
      yield { entry, first, start, end };
      start = end;
    }
  }

  /** Index of the last shard that begins at or before a position. */
  private shardAt(position: number): number {
    let [low, high] = [0, this.starts.length];
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.starts[middle]! <= position) low = middle;
      else high = middle;
    }
    return low;
  }

  /** Bits of a file from `first` on; valid until the next read. */
  private bitsOf(
    { file, sha256 }: { file: string; sha256: string },
    first: number,
    count: number,
  ): (index: number) => number {
    const firstByte = Math.floor(first / 8);
    const bytes = this.readBytes(file, sha256, firstByte, Math.ceil((first + count) / 8) - firstByte);
    const offset = first - 8 * firstByte;
    return (index) => (bytes[(offset + index) >> 3]! >> ((offset + index) & 7)) & 1;
  }

  private readShard({ file, sha256 }: ShardEntry, first: number, tokens: Int32Array): void {
    const { tokenBytes } = this;
    const length = tokens.length * tokenBytes;
    const bytes = this.readBytes(file, sha256, first * tokenBytes, length);
    if (isLittleEndian) {
      const Words = tokenBytes === 2 ? Uint16Array : Uint32Array;
      return tokens.set(new Words(bytes.buffer, 0, tokens.length));
    }
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < tokens.length; i++)
      tokens[i] = tokenBytes === 2 ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true);
  }

  /** Valid until the next read. */
  private readBytes(file: string, sha256: string, position: number, length: number): Uint8Array<ArrayBuffer> {
    const descriptor = this.open(file, sha256);
    if (this.bytes.length < length)
      this.bytes = new Uint8Array(Math.max(4096, 2 ** Math.ceil(Math.log2(length))));
    for (let done = 0; done < length;) {
      const count = readSync(descriptor, this.bytes, done, length - done, position + done);
      if (count === 0) {
        const expected = `${position + length} bytes`;
        throw new DataError('DATASET_CORRUPT', { file, expected, got: 'an early end' });
      }
      done += count;
    }
    return this.bytes;
  }

  private open(name: string, sha256: string): number {
    const known = this.files.get(name);
    if (known !== undefined) return known.descriptor;
    // If opening fails, it may succeed next time, and there is nothing to close.
    const descriptor = opened(join(this.folder, name), name);
    try {
      const stamp = stampOf(descriptor);
      this.check({ descriptor, name, sha256, stamp });
      this.files.set(name, { descriptor, stamp });
      return descriptor;
    } catch (error) {
      closeSync(descriptor);
      throw error;
    }
  }
}

function opened(path: string, file: string): number {
  try {
    return openSync(path, 'r');
  } catch (error) {
    if (isDiskFault(error)) throw error;
    const got = (error as NodeJS.ErrnoException).code ?? 'an error';
    throw new DataError(
      'DATASET_CORRUPT',
      { file, expected: 'a file that can be read', got },
      { cause: error },
    );
  }
}

const isLittleEndian = endianness() === 'LE';

/** Changes when a file is modified. */
function stampOf(descriptor: number): string {
  const { size, mtime, ino } = fstatSync(descriptor);
  return `${size} bytes, written at ${mtime.toISOString()} (${ino})`;
}
