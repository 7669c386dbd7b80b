import { join } from 'node:path';
import { GrowingFile, type FileMark } from './growingFile.js';

/** Whole bytes, and the bits after them. */
export interface BitMark extends FileMark {
  lastByte: number;
}

/** A file with one bit per token of a shard, lowest bit first. */
export class BitFile {
  private lastByte = 0;

  private constructor(
    readonly name: string,
    private readonly file: GrowingFile,
    private written: number,
  ) {}

  static async begin(folder: string, name: string): Promise<BitFile> {
    return new BitFile(name, await GrowingFile.begin(join(folder, name)), 0);
  }

  /** @param written number of bits before the mark */
  static async continueAt(folder: string, name: string, mark: BitMark, written: number): Promise<BitFile> {
    const bits = new BitFile(name, await GrowingFile.continueAt(join(folder, name), name, mark), written);
    bits.lastByte = mark.lastByte;
    return bits;
  }

  async write(bits: Uint8Array): Promise<void> {
    const first = this.written % 8;
    const bytes = new Uint8Array(Math.ceil((first + bits.length) / 8));
    bytes[0] = first === 0 ? 0 : this.lastByte;
    for (let index = 0; index < bits.length; index++) {
      const at = first + index;
      bytes[at >> 3]! |= bits[index]! << (at & 7);
    }
    // The bits of an incomplete byte wait for the next ones.
    const whole = (first + bits.length) >> 3;
    this.lastByte = bytes[whole] ?? 0;
    await this.file.write(bytes.subarray(0, whole));
    this.written += bits.length;
  }

  async mark(): Promise<BitMark> {
    await this.file.sync();
    return { ...this.file.mark, lastByte: this.lastByte };
  }

  /** Syncs the completed file without closing it. */
  async end(): Promise<{ file: string; sha256: string }> {
    if (this.written % 8 > 0) await this.file.write(Uint8Array.of(this.lastByte));
    await this.file.sync();
    return { file: this.name, sha256: this.file.mark.sha256 };
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}
