import { createHash, type Hash } from 'node:crypto';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import type { ShardEntry } from './manifest.js';

const bufferTokens = 1 << 18;

/** Writes tokens of one part to `<prefix>-00000.bin`, `<prefix>-00001.bin` …, hashed as written and synced. */
export class ShardWriter {
  private readonly shards: ShardEntry[] = [];
  private file: { handle: FileHandle; hash: Hash; tokens: number; name: string } | undefined;
  private readonly buffer: Buffer;
  private buffered = 0;
  private isDone = false;

  constructor(
    private readonly folder: string,
    private readonly prefix: string,
    private readonly tokenBytes: number,
    private readonly shardTokensMax: number,
  ) {
    this.buffer = Buffer.allocUnsafe(bufferTokens * tokenBytes);
  }

  async write(tokens: ArrayLike<number>): Promise<void> {
    for (let i = 0; i < tokens.length; i++) {
      const offset = this.buffered * this.tokenBytes;
      if (this.tokenBytes === 2) this.buffer.writeUInt16LE(tokens[i]!, offset);
      else this.buffer.writeUInt32LE(tokens[i]!, offset);
      if (++this.buffered === bufferTokens) await this.flush();
    }
  }

  /** Ends the last shard; returns all of them. */
  async end(): Promise<ShardEntry[]> {
    await this.flush();
    await this.endShard();
    this.isDone = true;
    return this.shards;
  }

  /** Closes what an error left open. */
  async abandon(): Promise<void> {
    if (!this.isDone) await this.file?.handle.close();
  }

  private async flush(): Promise<void> {
    for (let done = 0; done < this.buffered; ) {
      this.file ??= await this.beginShard();
      const count = Math.min(this.buffered - done, this.shardTokensMax - this.file.tokens);
      const bytes = this.buffer.subarray(done * this.tokenBytes, (done + count) * this.tokenBytes);
      await this.file.handle.writeFile(bytes); // at the present position
      this.file.hash.update(bytes);
      this.file.tokens += count;
      done += count;
      if (this.file.tokens === this.shardTokensMax) await this.endShard();
    }
    this.buffered = 0;
  }

  private async beginShard(): Promise<NonNullable<ShardWriter['file']>> {
    const name = `${this.prefix}-${String(this.shards.length).padStart(5, '0')}.bin`;
    return { handle: await open(join(this.folder, name), 'wx'), hash: createHash('sha256'), tokens: 0, name };
  }

  private async endShard(): Promise<void> {
    if (this.file === undefined) return;
    const { handle, hash, tokens, name } = this.file;
    await handle.sync();
    await handle.close();
    this.file = undefined;
    this.shards.push({ file: name, tokens, sha256: hash.digest('hex') });
  }
}
