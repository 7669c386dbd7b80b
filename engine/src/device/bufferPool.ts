/**
 * Float32Arrays for reuse, by length. The operating system faults in and zeroes the pages of a fresh array, which costs as much as the
 * arithmetic on them; a training step asks for the same sizes every time.
 */
export class BufferPool {
  private readonly free = new Map<number, Float32Array[]>();
  private freeBytes = 0;

  /** At most `freeBytesMax` are kept for reuse; arrays returned beyond that are left to the garbage collector. */
  constructor(private readonly freeBytesMax: number) {}

  /** An array of that length, with arbitrary contents. */
  take(length: number): Float32Array {
    const found = this.free.get(length)?.pop();
    if (found === undefined) return new Float32Array(length);
    this.freeBytes -= found.byteLength;
    return found;
  }

  /** The caller must hold no other reference to the array or to a part of it. */
  give(array: Float32Array): void {
    if (array.byteLength > this.freeBytesMax) return;
    // A Map keeps insertion order and `give` moves a length to the end, so the first one has been unused the longest.
    while (this.freeBytes + array.byteLength > this.freeBytesMax) this.dropOldestLength();
    const arrays = this.free.get(array.length) ?? [];
    this.free.delete(array.length);
    arrays.push(array);
    this.free.set(array.length, arrays);
    this.freeBytes += array.byteLength;
  }

  /** Removes all free arrays from the pool and returns them. */
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
