import type { CardMemory } from './cardMemory.js';
import type { Scope } from './scope.js';

/** Uploads what kernels read. */
type Fill = () => void;

const alignment = 256;

/** What work uploads, in one piece of memory that nothing else uses: a graph of the work reads it there each time. */
export class Feeds {
  private readonly wanted = new Map<object, Fill>();
  private block: { address: number; bytes: number } | null = null;
  private mode: 'measure' | 'record' = 'measure';
  private used = 0;

  constructor(private readonly memory: CardMemory) {}

  /** From now on uploads are counted, and done where they are asked for. */
  measure(): void {
    this.begin('measure');
  }

  /** From now on uploads are kept for `fill`. */
  record(): void {
    this.begin('record');
  }

  /** Has memory for what was counted. */
  reserve(): void {
    if (this.block !== null && this.block.bytes >= this.used) return;
    this.release();
    if (this.used > 0) this.block = { address: this.memory.take(this.used), bytes: this.used };
  }

  place(scope: Scope, bytes: number, fill: (at: number) => void): number {
    const begin = this.used;
    this.used += Math.ceil(Math.max(bytes, 1) / alignment) * alignment;
    if (this.mode === 'measure') {
      const at = scope.take(bytes);
      fill(at);
      return at;
    }
    if (this.block === null || this.used > this.block.bytes)
      throw new Error('Work that was to repeat uploads more than before');
    const at = this.block.address + begin;
    this.wanted.set(fill, () => fill(at));
    return at;
  }

  /** Uploads of the same `key` go to memory of their own, and are one. */
  once(key: object, fill: Fill): void {
    if (this.mode === 'measure') fill();
    else this.wanted.set(key, fill);
  }

  /** Uploads all of it. */
  fill(): void {
    for (const fill of this.wanted.values()) fill();
  }

  release(): void {
    if (this.block !== null) this.memory.give(this.block.address);
    this.block = null;
  }

  private begin(mode: 'measure' | 'record'): void {
    this.mode = mode;
    this.used = 0;
    this.wanted.clear();
  }
}
