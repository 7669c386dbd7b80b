/**
 * Float32Arrays to use again, by length. The pages of a fresh array are faulted in and zeroed by the kernel of the
 * operating system, which costs as much as the arithmetic on them; a training step asks for the same sizes every time.
 */
export class BufferPool {
  private readonly free = new Map<number, Float32Array[]>();
  private freeBytes = 0;

  /** At most `freeBytesMax` are kept for later; what comes back beyond that goes to the collector. */
  constructor(private readonly freeBytesMax: number) {}

  /** An array of that length, with whatever it last held. */
  take(length: number): Float32Array {
    const found = this.free.get(length)?.pop();
    if (found === undefined) return new Float32Array(length);
    this.freeBytes -= found.byteLength;
    return found;
  }

  /** The caller must hold no other reference to the array or to a part of it. */
  give(array: Float32Array): void {
    if (array.byteLength > this.freeBytesMax) return;
    // Map keeps insertion order and `give` moves a length to the end: the first one is the one longest unused.
    while (this.freeBytes + array.byteLength > this.freeBytesMax) this.dropOldestLength();
    const arrays = this.free.get(array.length) ?? [];
    this.free.delete(array.length);
    arrays.push(array);
    this.free.set(array.length, arrays);
    this.freeBytes += array.byteLength;
  }

  /** All that was free, which the pool does not hold any longer. */
  clear(): Float32Array[] {
    const arrays = [...this.free.values()].flat();
    this.free.clear();
    this.freeBytes = 0;
    return arrays;
  }

  private dropOldestLength(): void {
    for (const [length, arrays] of this.free) {
      this.free.delete(length);
      this.freeBytes -= 4 * length * arrays.length;
      if (arrays.length > 0) return;
    }
  }
}
