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
    let shard = this.starts.findLastIndex((start) => start <= position);
    for (let done = 0; done < count; shard++) {
      const entry = this.shards[shard]!;
      const first = position + done - this.starts[shard]!;
      const part = Math.min(count - done, entry.tokens - first);
      await this.readShard(entry, first, tokens.subarray(done, done + part));
      done += part;
    }
    return tokens;
  }

  async close(): Promise<void> {
    const handles = await Promise.all(this.handles.values());
    this.handles.clear();
    await Promise.all(handles.map(async (handle) => await handle.close()));
  }

  private async readShard(entry: ShardEntry, first: number, tokens: Int32Array): Promise<void> {
    const handle = await this.handle(entry.file);
    const bytes = Buffer.allocUnsafe(tokens.length * this.tokenBytes);
    for (let done = 0; done < bytes.length;) {
      const { bytesRead } = await handle.read(
        bytes,
        done,
        bytes.length - done,
        first * this.tokenBytes + done,
      );
      if (bytesRead === 0) {
        throw new DataError('DATASET_CORRUPT', {
          file: entry.file,
          expected: `${entry.tokens} tokens`,
          got: 'an early end',
        });
      }
      done += bytesRead;
    }
    for (let i = 0; i < tokens.length; i++) {
      tokens[i] = this.tokenBytes === 2 ? bytes.readUInt16LE(2 * i) : bytes.readUInt32LE(4 * i);
    }
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
