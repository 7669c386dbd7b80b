import { join } from 'node:path';
import { BitFile, type BitMark } from './bitFile.js';
import { GrowingFile, type FileMark } from './growingFile.js';
import type { ShardEntry } from './manifest.js';

/** Additional bits per token: whether it is to be learned, and whether it ends a document. */
export type BitKind = 'mask' | 'ends';

/** State of an incomplete shard. */
export type ShardMark = { tokens: number; bin: FileMark } & { [kind in BitKind]?: BitMark };

/** Writes `<prefix>-00000.bin` and, if requested, `<prefix>-00000.mask` and `<prefix>-00000.ends`. */
export class ShardWriter {
  private constructor(
    readonly file: string,
    private readonly bin: GrowingFile,
    private readonly bits: ReadonlyMap<BitKind, BitFile>,
    private written: number,
  ) {}

  static async begin(folder: string, file: string, kinds: readonly BitKind[]): Promise<ShardWriter> {
    const bin = await GrowingFile.begin(join(folder, file));
    const bits = new Map<BitKind, BitFile>();
    for (const kind of kinds) bits.set(kind, await BitFile.begin(folder, bitFileOf(file, kind)));
    return new ShardWriter(file, bin, bits, 0);
  }

  static async continueAt(folder: string, file: string, mark: ShardMark): Promise<ShardWriter> {
    const bits = new Map<BitKind, BitFile>();
    const shard = new ShardWriter(
      file,
      await GrowingFile.continueAt(join(folder, file), file, mark.bin),
      bits,
      mark.tokens,
    );
    try {
      for (const kind of ['mask', 'ends'] as const) {
        const of = mark[kind];
        if (of !== undefined)
          bits.set(kind, await BitFile.continueAt(folder, bitFileOf(file, kind), of, mark.tokens));
      }
      return shard;
    } catch (error) {
      await shard.close();
      throw error;
    }
  }

  get tokens(): number {
    return this.written;
  }

  async write(bytes: Uint8Array, bits: Readonly<Record<BitKind, Uint8Array>>): Promise<void> {
    await this.bin.write(bytes);
    for (const [kind, file] of this.bits) await file.write(bits[kind]);
    this.written += bits.mask.length;
  }

  async mark(): Promise<ShardMark> {
    await this.bin.sync();
    const mark: ShardMark = { tokens: this.written, bin: this.bin.mark };
    for (const [kind, file] of this.bits) mark[kind] = await file.mark();
    return mark;
  }

  /** Syncs and closes the complete shard. */
  async end(): Promise<ShardEntry> {
    const entry: ShardEntry = { file: this.file, tokens: this.written, sha256: '' };
    for (const [kind, file] of this.bits) entry[kind] = await file.end();
    await this.bin.sync();
    entry.sha256 = this.bin.mark.sha256;
    await this.close();
    return entry;
  }

  async close(): Promise<void> {
    await this.bin.close();
    for (const file of this.bits.values()) await file.close();
  }
}

function bitFileOf(file: string, kind: BitKind): string {
  return file.replace(/bin$/, kind);
}
