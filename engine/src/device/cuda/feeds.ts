import type { CardMemory } from './cardMemory.js';
import type { Scope } from './scope.js';

/** Uploads what kernels read. */
type Fill = () => void;

const alignment = 256;

/** The uploads of some work, in one piece of memory of its own: a graph of the work reads them there every time. */
export class Feeds {
  private readonly wanted = new Map<object, Fill>();
  private block: { address: number; bytes: number } | null = null;
  private mode: 'measure' | 'record' = 'measure';
  private used = 0;

  constructor(private readonly memory: CardMemory) {}

  /** From now on uploads are counted, and made directly. */
  measure(): void {
    this.begin('measure');
  }

  /** From now on uploads are recorded for `fill`. */
  record(): void {
    this.begin('record');
  }

  /** Allocates memory for the counted uploads. */
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

  /** Uploads of the same `key` are made once, to the caller's memory. */
  once(key: object, fill: Fill): void {
    if (this.mode === 'measure') fill();
    else this.wanted.set(key, fill);
  }

  /** Performs all recorded uploads. */
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
