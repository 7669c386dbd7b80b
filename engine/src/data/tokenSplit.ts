import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError } from './dataErrors.js';
import type { ShardEntry } from './manifest.js';

/** Tokens of one part of a data set, read by position from its shards; only what is asked for is in memory. */
export class TokenSplit {
  private readonly starts: number[] = [];
  private readonly handles = new Map<string, Promise<FileHandle>>();
  readonly tokenCount: number;

  constructor(
    private readonly folder: string,
    private readonly shards: readonly ShardEntry[],
    /** 2 or 4, little-endian. */
    private readonly tokenBytes: number,
  ) {
    let start = 0;
    for (const shard of shards) {
      this.starts.push(start);
      start += shard.tokens;
    }
    this.tokenCount = start;
  }

  /** Tokens position … position + count - 1; they must exist. */
  async read(position: number, count: number): Promise<Int32Array> {
    if (!(position >= 0 && count >= 0 && position + count <= this.tokenCount)) {
      throw new RangeError(`Tokens ${position} to ${position + count} of ${this.tokenCount}`);
    }
    const tokens = new Int32Array(count);
    for (const { entry, first, start, end } of this.partsOf(position, count))
      await this.readShard(entry, first, tokens.subarray(start, end));
    return tokens;
  }

  /** Puts -1 for each of the tokens from `position` on that is not to be learned. */
  async mask(position: number, tokens: Int32Array): Promise<void> {
    for (const { entry, first, start, end } of this.partsOf(position, tokens.length)) {
      if (entry.mask === undefined) continue;
      const firstByte = first >> 3;
      const bits = await this.readBytes(
        entry.mask.file,
        firstByte,
        ((first + end - start + 7) >> 3) - firstByte,
      );
      for (let at = start; at < end; at++) {
        const bit = first + at - start - 8 * firstByte;
        if (((bits[bit >> 3]! >> (bit & 7)) & 1) === 0) tokens[at] = -1;
      }
    }
  }

  /** Where tokens lie: in each shard from `first` on, and from `start` to `end` among those asked for. */
  private *partsOf(
    position: number,
    count: number,
  ): Generator<{ entry: ShardEntry; first: number; start: number; end: number }> {
    let shard = this.starts.findLastIndex((start) => start <= position);
    for (let start = 0; start < count; shard++) {
      const entry = this.shards[shard]!;
      const first = position + start - this.starts[shard]!;
      const end = Math.min(count, start + entry.tokens - first);
      yield { entry, first, start, end };
      start = end;
    }
  }

  async close(): Promise<void> {
    const handles = await Promise.all(this.handles.values());
    this.handles.clear();
    await Promise.all(handles.map(async (handle) => await handle.close()));
  }

  private async readShard(entry: ShardEntry, first: number, tokens: Int32Array): Promise<void> {
    const bytes = await this.readBytes(entry.file, first * this.tokenBytes, tokens.length * this.tokenBytes);
    for (let i = 0; i < tokens.length; i++) {
      tokens[i] = this.tokenBytes === 2 ? bytes.readUInt16LE(2 * i) : bytes.readUInt32LE(4 * i);
    }
  }

  private async readBytes(file: string, position: number, length: number): Promise<Buffer> {
    const handle = await this.handle(file);
    const bytes = Buffer.allocUnsafe(length);
    for (let done = 0; done < length;) {
      const { bytesRead } = await handle.read(bytes, done, length - done, position + done);
      if (bytesRead === 0) {
        const expected = `${position + length} bytes`;
        throw new DataError('DATASET_CORRUPT', { file, expected, got: 'an early end' });
      }
      done += bytesRead;
    }
    return bytes;
  }

  private handle(file: string): Promise<FileHandle> {
    let handle = this.handles.get(file);
    if (handle === undefined) {
      handle = open(join(this.folder, file), 'r');
      this.handles.set(file, handle);
      // What could not be opened may be there next time, and has nothing to close.
      handle.catch(() => this.handles.delete(file));
    }
    return handle;
  }
}
