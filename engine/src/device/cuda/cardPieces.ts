import { DeviceFault } from '../deviceFaults.js';
import type { Card } from './cudaAddon.js';
import { Slabs, type Lifetime } from './slabs.js';

/** The driver aligns allocations to this. */
const alignment = 256;
/**
 * Smaller allocations go to slabs of their own: norms, tables and sums live long, and between them no gap would be large enough for a
 * layer's activations.
 */
const smallBytes = 2 ** 18;
const smallSlabBytes = 2 ** 21;

/**
 * Card memory by address. Released memory is reused for requests of the same size; commands run in order, so none can see another's data.
 */
export class CardPieces {
  private readonly large: Slabs;
  private readonly small: Slabs;
  private readonly taken = new Map<number, number>();
  private bytes = 0;
  /** A checksum of the allocated pieces, independent of their order. */
  private sum = 0;
  /** Counts the changes that repeating the calls would not make again. */
  private changes = 0;

  /** `isApart`: every buffer is a driver allocation of its own. */
  constructor(
    readonly card: Card,
    isApart = false,
  ) {
    this.large = new Slabs(card, isApart);
    const large = {
      allocate: (bytes: number) => this.large.take(bytes),
      release: (address: number) => this.large.give(address, smallSlabBytes),
    };
    this.small = new Slabs(isApart ? card : large, isApart, { least: smallSlabBytes, most: smallSlabBytes });
  }

  /** Allocates that many bytes; the contents are arbitrary. */
  take(bytes: number, lifetime: Lifetime = 'any'): number {
    const size = Math.ceil(Math.max(bytes, 1) / alignment) * alignment;
    const address = this.piece(size, lifetime);
    this.taken.set(address, size);
    this.bytes += size;
    this.sum = (this.sum + mixed(address, size)) >>> 0;
    return address;
  }

  /** Releases memory; queued commands may still use it. */
  give(address: number): void {
    const size = this.taken.get(address);
    if (size === undefined) throw new Error('Memory of the card was given back already');
    this.taken.delete(address);
    this.bytes -= size;
    this.sum = (this.sum - mixed(address, size)) >>> 0;
    this.slabsOf(size).give(address, size);
  }

  trim(): void {
    this.changed();
    this.small.trim();
    this.large.trim();
  }

  reserve(bytes: number): number | null {
    const { allocatedBytes, freeBytes } = this.card.memory();
    const missing = bytes - allocatedBytes;
    if (missing > freeBytes) return allocatedBytes + freeBytes;
    this.large.reserve(missing);
    return null;
  }

  memory(): { count: number; bytes: number } {
    return { count: this.taken.size, bytes: this.bytes };
  }

  /** Stays the same as long as the same memory is allocated and `changed` was not called: then the same calls queue the same commands. */
  mark(): string {
    return `${this.taken.size} ${this.bytes} ${this.sum} ${this.changes}`;
  }

  /** Invalidates earlier marks: earlier calls would now queue something else. */
  changed(): void {
    this.changes++;
  }

  snapshot(): ReadonlySet<number> {
    return new Set(this.taken.keys());
  }

  /** Releases everything else, after an interruption. */
  giveAllBut(held: ReadonlySet<number>): void {
    for (const address of [...this.taken.keys()]) if (!held.has(address)) this.give(address);
  }

  private slabsOf(size: number): Slabs {
    return size < smallBytes ? this.small : this.large;
  }

  private piece(size: number, lifetime: Lifetime): number {
    try {
      return this.slabsOf(size).take(size, lifetime);
    } catch (error) {
      if (!(error instanceof DeviceFault) || error.reason !== 'DEVICE_OUT_OF_MEMORY') throw error;
    }
    this.trim();
    try {
      return this.slabsOf(size).take(size, lifetime);
    } catch (error) {
      if (!(error instanceof DeviceFault) || error.reason !== 'DEVICE_OUT_OF_MEMORY') throw error;
      const { freeBytes, totalBytes } = this.card.memory();
      throw new DeviceFault(
        'DEVICE_OUT_OF_MEMORY',
        `The card has no ${size} bytes in addition to the ${this.bytes} that this run holds: ${freeBytes} of ${totalBytes} are free. ` +
          'Ask for smaller micro-batches, recomputation or moments in eight bits',
        { cause: error },
      );
    }
  }
}

function mixed(address: number, size: number): number {
  const words =
    (address % 2 ** 32) ^
    Math.imul(Math.floor(address / 2 ** 32), 0x85ebca6b) ^
    Math.imul(size / alignment, 0xc2b2ae35);
  const spread = Math.imul(words ^ (words >>> 15), 0x2c1b3c6d);
  return (spread ^ (spread >>> 13)) >>> 0;
}
