import { createHash, type Hash } from 'node:crypto';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { writeNewFile } from '../io/durableFile.js';
import type { ShardEntry, SplitEntry } from './manifest.js';
import type { TextPiece } from './textPieces.js';

export interface SplitWriterOptions {
  folder: string;
  prefix: string;
  /** 2 or 4. */
  tokenBytes: number;
  shardBytesMax: number;
  /** Written after every document. */
  endOfTextId: number;
  /** Whether a mask is written that says which tokens are to be learned. */
  isMasked: boolean;
  /** File for the text itself; without it only tokens are written. */
  textPath?: string;
}

const bufferTokens = 1 << 18;

/** Writes one part of a data set to `<prefix>-00000.bin` …, its mask to `<prefix>-00000.mask` …, hashed as written and synced. */
export class SplitWriter {
  private readonly shards: ShardEntry[] = [];
  private readonly buffer: Buffer;
  /** Of each buffered token whether it is to be learned. */
  private readonly isTrained = new Uint8Array(bufferTokens);
  private buffered = 0;
  private shard:
    { handle: FileHandle; hash: Hash; tokens: number; mask: Uint8Array; file: string } | undefined;
  private text: FileHandle | undefined;
  private documents = 0;
  private bytes = 0;
  private readonly trained = { tokens: 0, bytes: 0 };

  constructor(private readonly options: SplitWriterOptions) {
    this.buffer = Buffer.allocUnsafe(bufferTokens * options.tokenBytes);
  }

  async write(piece: TextPiece, tokens: ArrayLike<number>): Promise<void> {
    for (let i = 0; i < tokens.length; i++) {
      if (this.buffered === bufferTokens) await this.flush();
      this.put(tokens[i]!, piece.isTrained);
    }
    this.bytes += piece.textBytes;
    if (piece.isTrained) this.trained.bytes += piece.textBytes;
    await this.writeText(piece.text);
    if (!piece.endsDocument) return;
    this.documents++;
    if (this.buffered === bufferTokens) await this.flush();
    this.put(this.options.endOfTextId, true);
  }

  /** Ends and syncs all files. */
  async end(): Promise<SplitEntry> {
    await this.flush();
    await this.endShard();
    await this.writeText(''); // there is a text file even without text
    await this.text?.sync();
    const { documents, bytes, shards } = this;
    const tokens = shards.reduce((sum, shard) => sum + shard.tokens, 0);
    return { tokens, documents, bytes, ...(this.options.isMasked ? { trained: this.trained } : {}), shards };
  }

  /** Closes what is open, also after an error. */
  async close(): Promise<void> {
    await this.shard?.handle.close();
    await this.text?.close();
    this.shard = this.text = undefined;
  }

  private put(token: number, isTrained: boolean): void {
    const { buffer, options } = this;
    this.isTrained[this.buffered] = isTrained ? 1 : 0;
    if (isTrained) this.trained.tokens++;
    if (options.tokenBytes === 2) buffer.writeUInt16LE(token, 2 * this.buffered++);
    else buffer.writeUInt32LE(token, 4 * this.buffered++);
  }

  private async writeText(text: string): Promise<void> {
    if (this.options.textPath === undefined) return;
    this.text ??= await open(this.options.textPath, 'wx');
    await this.text.writeFile(text); // at the present position
  }

  private async flush(): Promise<void> {
    const { tokenBytes, shardBytesMax } = this.options;
    const shardTokensMax = Math.max(1, Math.floor(shardBytesMax / tokenBytes));
    for (let done = 0; done < this.buffered;) {
      this.shard ??= await this.beginShard();
      const count = Math.min(this.buffered - done, shardTokensMax - this.shard.tokens);
      const bytes = this.buffer.subarray(done * tokenBytes, (done + count) * tokenBytes);
      await this.shard.handle.writeFile(bytes); // at the present position
      this.shard.hash.update(bytes);
      if (this.options.isMasked) this.mark(this.shard, this.isTrained.subarray(done, done + count));
      this.shard.tokens += count;
      done += count;
      if (this.shard.tokens === shardTokensMax) await this.endShard();
    }
    this.buffered = 0;
  }

  private mark(shard: NonNullable<SplitWriter['shard']>, isTrained: Uint8Array): void {
    const lengthBytes = Math.ceil((shard.tokens + isTrained.length) / 8);
    if (lengthBytes > shard.mask.length) {
      const longer = new Uint8Array(2 * lengthBytes);
      longer.set(shard.mask);
      shard.mask = longer;
    }
    for (const [index, bit] of isTrained.entries()) {
      const at = shard.tokens + index;
      shard.mask[Math.floor(at / 8)]! |= bit << (at & 7);
    }
  }

  private async beginShard(): Promise<NonNullable<SplitWriter['shard']>> {
    const file = `${this.options.prefix}-${String(this.shards.length).padStart(5, '0')}.bin`;
    return {
      handle: await open(join(this.options.folder, file), 'wx'),
      hash: createHash('sha256'),
      tokens: 0,
      mask: new Uint8Array(0),
      file,
    };
  }

  private async endShard(): Promise<void> {
    if (this.shard === undefined) return;
    const { handle, hash, tokens, file, mask } = this.shard;
    await handle.sync();
    await handle.close();
    this.shard = undefined;
    const entry: ShardEntry = { file, tokens, sha256: hash.digest('hex') };
    if (this.options.isMasked) {
      const maskFile = file.replace(/bin$/, 'mask');
      const bytes = mask.subarray(0, Math.ceil(tokens / 8));
      const { sha256 } = await writeNewFile(join(this.options.folder, maskFile), bytes);
      entry.mask = { file: maskFile, sha256 };
    }
    this.shards.push(entry);
  }
}
