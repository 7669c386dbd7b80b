import { DeviceFault } from '../deviceFaults.js';
import type { Card } from './cudaAddon.js';
import { Slabs, type Lifetime } from './slabs.js';

/** The driver aligns allocations to this. */
const alignment = 256;
/**
 * What is smaller lies in slabs of its own: norms, tables and sums are held long, and between them no hole would be wide enough for
 * what a layer makes.
 */
const smallBytes = 2 ** 18;
const smallSlabBytes = 2 ** 21;

/** Memory of a card by address. What is given back is used again for what needs as much: commands run in order, so none can see another's. */
export class CardPieces {
  private readonly large: Slabs;
  private readonly small: Slabs;
  private readonly taken = new Map<number, number>();
  private bytes = 0;
  /** A checksum of what is taken, the same in any order. */
  private sum = 0;
  /** Counts the changes that repeated calls do not make again. */
  private changes = 0;

  /** `isApart`: every buffer is an allocation of the driver's own. */
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

  /** The address of that many bytes, which hold anything. */
  take(bytes: number, lifetime: Lifetime = 'any'): number {
    const size = Math.ceil(Math.max(bytes, 1) / alignment) * alignment;
    const address = this.piece(size, lifetime);
    this.taken.set(address, size);
    this.bytes += size;
    this.sum = (this.sum + mixed(address, size)) >>> 0;
    return address;
  }

  /** Commands that are queued may still use it. */
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

  /** The same while the same memory is taken and nothing has changed that no call repeats: then the same calls queue the same. */
  mark(): string {
    return `${this.taken.size} ${this.bytes} ${this.sum} ${this.changes}`;
  }

  /** What calls before this one have queued is not what they would queue now. */
  changed(): void {
    this.changes++;
  }

  snapshot(): ReadonlySet<number> {
    return new Set(this.taken.keys());
  }

  /** For what was interrupted. */
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
        `The card has no ${size} bytes beside the ${this.bytes} that this run holds: ${freeBytes} of ${totalBytes} are free. ` +
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
