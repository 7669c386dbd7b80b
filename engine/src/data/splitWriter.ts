import { readdir, rm } from 'node:fs/promises';
import { endianness } from 'node:os';
import { join } from 'node:path';
import { isDiskFault } from '../io/diskFault.js';
import { digestFile } from '../io/durableFile.js';
import { DataError } from './dataErrors.js';
import { GrowingFile, type FileMark } from './growingFile.js';
import type { ShardEntry, SplitEntry } from './manifest.js';
import { ShardWriter, type BitKind, type ShardMark } from './shardWriter.js';
import type { TextPiece } from './textPieces.js';

export interface SplitWriterOptions {
  folder: string;
  prefix: string;
  /** 2 or 4. */
  tokenBytes: number;
  shardBytesMax: number;
  /** Written after every document. */
  endOfTextId: number;
  /** Whether to write a mask of the tokens to be learned. */
  isMasked: boolean;
  /** Whether texts may contain the end-of-text token, so that it must be recorded which of these tokens end a document. */
  mayEndWithin: boolean;
  /** File name for the text itself; without it only tokens are written. */
  textFile?: string;
}

/** How far a part was written: everything needed to continue it. */
export interface SplitMark {
  shards: ShardEntry[];
  shard: ShardMark | null;
  text: FileMark | null;
  documents: number;
  bytes: number;
  trained: { tokens: number; bytes: number };
  endsWithin: number;
}

const bufferTokens = 1 << 18;

/**
 * Writes one part of a data set to `<prefix>-00000.bin` …, its mask to `<prefix>-00000.mask` … and the document ends to
 * `<prefix>-00000.ends` …, hashed while writing, and synced.
 */
export class SplitWriter {
  private shards: ShardEntry[] = [];
  private readonly buffer: Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;
  /** For each buffered token, whether it is to be learned. */
  private readonly isTrained = new Uint8Array(bufferTokens);
  /** And whether it ends a document. */
  private readonly endsDocument = new Uint8Array(bufferTokens);
  private buffered = 0;
  private shard: ShardWriter | undefined;
  private text: GrowingFile | undefined;
  private documents = 0;
  private bytes = 0;
  private trained = { tokens: 0, bytes: 0 };
  /** End-of-text tokens within chats. */
  private endsWithin = 0;

  private constructor(private readonly options: SplitWriterOptions) {
    this.buffer = new (options.tokenBytes === 2 ? Uint16Array : Uint32Array)(bufferTokens);
  }

  /**
   * Starts a part, or continues it at a mark: anything written after the mark is removed. Throws DATASET_CORRUPT if what was written before
   * it has changed.
   */
  static async open(options: SplitWriterOptions, mark?: SplitMark): Promise<SplitWriter> {
    const { folder, textFile } = options;
    const writer = new SplitWriter(options);
    if (mark === undefined) {
      if (textFile !== undefined) writer.text = await GrowingFile.begin(join(folder, textFile));
      return writer;
    }
    ({ documents: writer.documents, bytes: writer.bytes, endsWithin: writer.endsWithin } = mark);
    [writer.shards, writer.trained] = [[...mark.shards], { ...mark.trained }];
    for (const { file, sha256, mask, ends } of mark.shards) {
      await assertDigest(folder, file, sha256);
      for (const bits of [mask, ends])
        if (bits !== undefined) await assertDigest(folder, bits.file, bits.sha256);
    }
    await writer.removeFrom(mark.shards.length + (mark.shard === null ? 0 : 1));
    try {
      if (mark.shard !== null)
        writer.shard = await ShardWriter.continueAt(folder, writer.shardFile(mark.shards.length), mark.shard);
      if (textFile !== undefined && mark.text !== null)
        writer.text = await GrowingFile.continueAt(join(folder, textFile), textFile, mark.text);
      return writer;
    } catch (error) {
      await writer.close();
      throw error;
    }
  }

  /** @param marks for each token whether it is to be learned; null if the piece says it for all */
  async write(
    piece: Omit<TextPiece, 'endsText'>,
    tokens: Uint32Array,
    marks: Uint8Array | null = null,
  ): Promise<void> {
    for (let done = 0; done < tokens.length;) {
      if (this.buffered === bufferTokens) await this.flush();
      const count = Math.min(tokens.length - done, bufferTokens - this.buffered);
      const end = done + count;
      this.put(tokens.subarray(done, end), marks === null ? piece.isTrained : marks.subarray(done, end));
      done = end;
    }
    if (piece.spans !== undefined)
      for (const token of tokens) if (token === this.options.endOfTextId) this.endsWithin++;
    this.bytes += piece.textBytes;
    if (piece.isTrained) this.trained.bytes += piece.textBytes;
    for (const [start, end] of piece.spans ?? [])
      this.trained.bytes += Buffer.byteLength(piece.text.slice(start, end));
    if (piece.text !== '') await this.text?.write(Buffer.from(piece.text));
    if (!piece.endsDocument) return;
    this.documents++;
    if (this.buffered === bufferTokens) await this.flush();
    // In a chat the template has already marked the end of the assistant's message.
    this.put([this.options.endOfTextId], piece.spans === undefined);
    this.endsDocument[this.buffered - 1] = 1;
  }

  /** Makes the written data durable, so that another writer can continue there. */
  async mark(): Promise<SplitMark> {
    await this.flush();
    const shard = (await this.shard?.mark()) ?? null;
    await this.text?.sync();
    const { shards, documents, bytes, trained, endsWithin } = this;
    return {
      shards: [...shards],
      shard,
      text: this.text?.mark ?? null,
      documents,
      bytes,
      trained: { ...trained },
      endsWithin,
    };
  }

  /** Completes and syncs all files. */
  async end(): Promise<SplitEntry> {
    await this.flush();
    await this.endShard();
    await this.text?.sync();
    if (this.endsWithin === 0) await this.removeEnds();
    const { documents, bytes, shards, trained } = this;
    const tokens = shards.reduce((sum, shard) => sum + shard.tokens, 0);
    return { ...{ tokens, documents, bytes }, ...(this.options.isMasked ? { trained } : {}), shards };
  }

  /** Closes open files, also after an error. */
  async close(): Promise<void> {
    const [shard, text] = [this.shard, this.text];
    this.shard = this.text = undefined;
    await shard?.close();
    await text?.close();
  }

  /** If every end-of-text token ends a document, the `ends` files are not needed. */
  private async removeEnds(): Promise<void> {
    for (const { ends } of this.shards)
      if (ends !== undefined) await rm(join(this.options.folder, ends.file));
    this.shards = this.shards.map(({ ends: _, ...shard }) => shard);
  }

  private put(tokens: ArrayLike<number>, isTrained: boolean | Uint8Array): void {
    this.buffer.set(tokens, this.buffered);
    this.endsDocument.fill(0, this.buffered, this.buffered + tokens.length);
    if (typeof isTrained === 'boolean') {
      this.isTrained.fill(isTrained ? 1 : 0, this.buffered, this.buffered + tokens.length);
      if (isTrained) this.trained.tokens += tokens.length;
    } else {
      this.isTrained.set(isTrained, this.buffered);
      for (const mark of isTrained) this.trained.tokens += mark;
    }
    this.buffered += tokens.length;
  }

  private async flush(): Promise<void> {
    const { tokenBytes, shardBytesMax, isMasked, mayEndWithin } = this.options;
    const kinds: BitKind[] = [
      ...(isMasked ? ['mask' as const] : []),
      ...(mayEndWithin ? ['ends' as const] : []),
    ];
    const shardTokensMax = Math.max(1, Math.floor(shardBytesMax / tokenBytes));
    const bytes = Buffer.from(this.buffer.buffer, 0, this.buffered * tokenBytes);
    if (!isLittleEndian) void (tokenBytes === 2 ? bytes.swap16() : bytes.swap32());
    for (let done = 0; done < this.buffered;) {
      this.shard ??= await ShardWriter.begin(this.options.folder, this.shardFile(this.shards.length), kinds);
      const count = Math.min(this.buffered - done, shardTokensMax - this.shard.tokens);
      await this.shard.write(bytes.subarray(done * tokenBytes, (done + count) * tokenBytes), {
        mask: this.isTrained.subarray(done, done + count),
        ends: this.endsDocument.subarray(done, done + count),
      });
      done += count;
      if (this.shard.tokens === shardTokensMax) await this.endShard();
    }
    this.buffered = 0;
  }

  private async endShard(): Promise<void> {
    if (this.shard === undefined) return;
    const entry = await this.shard.end();
    this.shard = undefined;
    this.shards.push(entry);
  }

  /** Removes files started after a mark, since new files must not overwrite. */
  private async removeFrom(index: number): Promise<void> {
    const { folder, prefix } = this.options;
    for (const name of await readdir(folder)) {
      const number = new RegExp(`^${prefix}-(\\d{5,})\\.(bin|mask|ends)$`).exec(name)?.[1];
      if (number !== undefined && Number(number) >= index) await rm(join(folder, name));
    }
  }

  private shardFile(index: number): string {
    return `${this.options.prefix}-${String(index).padStart(5, '0')}.bin`;
  }
}

const isLittleEndian = endianness() === 'LE';

async function assertDigest(folder: string, file: string, expected: string): Promise<void> {
  const got = await digestFile(join(folder, file)).then(
    ({ sha256 }) => `SHA-256 ${sha256}`,
    (error: unknown) => {
      if (isDiskFault(error)) throw error;
      return (error as NodeJS.ErrnoException).code ?? 'an error';
    },
  );
  if (got !== `SHA-256 ${expected}`)
    throw new DataError('DATASET_CORRUPT', { file, expected: `SHA-256 ${expected}`, got });
}
