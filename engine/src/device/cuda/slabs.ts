/** Source of memory: the driver, or a stand-in. */
export interface SlabSource {
  allocate(bytes: number): number;
  release(address: number): void;
}

/** 'pass': until the backward pass of the same step. */
export type Lifetime = 'pass' | 'any';

interface Piece {
  address: number;
  bytes: number;
}

/** Sizes of driver allocations: each is a quarter of the memory taken so far, within these limits. */
export interface SlabSizes {
  readonly least: number;
  readonly most: number;
}

const largeSlabs: SlabSizes = { least: 2 ** 26, most: 2 ** 28 };

/**
 * Card memory as pieces of few large allocations. A released piece is merged with free neighbors. Requests take the beginning of the
 * smallest free piece that fits; memory kept for a backward pass is taken from the end of the last one, so that no long-lived piece ends up
 * in between. The same calls give the same addresses. Nothing waits: commands that use a piece are queued after those that used it before.
 */
export class Slabs {
  /** Free pieces, sorted by address. */
  private readonly free: Piece[] = [];
  private readonly slabs = new Map<number, number>();

  private taken = 0;

  /** `isApart`: every piece is an allocation of its own, so that memory checkers see out-of-bounds accesses. */
  constructor(
    private readonly source: SlabSource,
    private readonly isApart: boolean,
    private readonly sizes = largeSlabs,
  ) {}

  /** Allocates bytes, a multiple of the alignment. Throws what the source throws. */
  take(bytes: number, lifetime: Lifetime = 'any'): number {
    const isOfPass = lifetime === 'pass';
    let best = -1;
    for (let i = 0; i < this.free.length; i++) {
      const { bytes: size } = this.free[i]!;
      const isBetter = best < 0 || isOfPass || size < this.free[best]!.bytes;
      if (this.isApart ? size === bytes : size >= bytes && isBetter) best = i;
    }
    if (best < 0) {
      const { least, most } = this.sizes;
      const grown = Math.min(most, Math.max(least, Math.floor(this.taken / 4 / least) * least));
      const size = this.isApart ? bytes : Math.max(bytes, grown);
      best = this.insert(this.fromSource(size, bytes));
    }
    this.taken += bytes;
    const piece = this.free[best]!;
    piece.bytes -= bytes;
    const address = isOfPass ? piece.address + piece.bytes : piece.address;
    if (!isOfPass) piece.address += bytes;
    if (piece.bytes === 0) this.free.splice(best, 1);
    return address;
  }

  give(address: number, bytes: number): void {
    this.taken -= bytes;
    const at = this.place(address);
    const [before, behind] = [this.free[at - 1], this.free[at]];
    const joinsBefore =
      before !== undefined && before.address + before.bytes === address && !this.slabs.has(address);
    const joinsBehind =
      behind !== undefined && address + bytes === behind.address && !this.slabs.has(behind.address);
    if (joinsBefore && joinsBehind) {
      before.bytes += bytes + behind.bytes;
      this.free.splice(at, 1);
    } else if (joinsBefore) before.bytes += bytes;
    else if (joinsBehind) {
      behind.address = address;
      behind.bytes += bytes;
    } else this.free.splice(at, 0, { address, bytes });
  }

  /** Takes that many more bytes from the driver in one allocation. If the driver has no such piece, memory is taken when it is needed. */
  reserve(bytes: number): void {
    if (this.isApart || bytes < this.sizes.least) return;
    try {
      const address = this.source.allocate(bytes);
      this.slabs.set(address, bytes);
      this.insert(address);
    } catch {
      // The run starts anyway: if memory runs out later, that error has its own figures.
    }
  }

  /** Returns allocations that are completely free. */
  trim(): void {
    for (let i = this.free.length - 1; i >= 0; i--) {
      const { address, bytes } = this.free[i]!;
      if (this.slabs.get(address) !== bytes) continue;
      this.source.release(address);
      this.slabs.delete(address);
      this.free.splice(i, 1);
    }
  }

  /** A large allocation, or one of exactly the needed size if the driver has no more. */
  private fromSource(size: number, needed: number): number {
    try {
      const address = this.source.allocate(size);
      this.slabs.set(address, size);
      return address;
    } catch (error) {
      if (size === needed) throw error;
      const address = this.source.allocate(needed);
      this.slabs.set(address, needed);
      return address;
    }
  }

  private insert(address: number): number {
    const at = this.place(address);
    this.free.splice(at, 0, { address, bytes: this.slabs.get(address)! });
    return at;
  }

  /** Index of the first free piece after the address. */
  private place(address: number): number {
    let [low, high] = [0, this.free.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.free[middle]!.address < address) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
