import { DeviceFault } from '../deviceFaults.js';
import type { DeviceBuffer, DeviceMemory, ElementType, HostValues } from '../device.js';
import type { Card } from './cudaAddon.js';
import type { Matrix } from './matrix.js';
import { Slabs } from './slabs.js';

/** What flows between the halves is float32 here too: what a probe computes from it is exact, and it costs a step little. */
const elementBytes: Record<ElementType, number> = { float32: 4, activation: 4, int8: 1, uint8: 1 };
/** The driver aligns allocations to this. */
const alignment = 256;
/** Parts of one allocation begin at multiples of it: 16 bytes are moved as one. */
const partAlignment = 64;

class CardBuffer implements DeviceBuffer {
  half: Half | null = null;
  /** Where its values lie while they are parked: pinned memory of the host. */
  host: number | null = null;

  constructor(
    readonly owner: CardMemory,
    /** Null once it was given back, and while it is parked. */
    public address: number | null,
    readonly length: number,
    readonly type: ElementType,
    /** Where the allocation begins that it is a part of; null where it is none. */
    readonly whole: number | null,
  ) {}

  get isPart(): boolean {
    return this.whole !== null;
  }
}

/** The bfloat16 of a parameter, beside it. */
export interface Half {
  readonly matrix: Matrix;
  /** The parameter was written since. */
  isStale: boolean;
  /** The codes of the matrix are of these values, too. */
  hasCodes: boolean;
  release(): void;
}

/** Memory of a card. What is given back is used again for what needs as much: commands run in order, so none can see another's. */
export class CardMemory implements DeviceMemory {
  private readonly slabs: Slabs;
  private readonly taken = new Map<number, number>();
  private bytes = 0;

  /** `isApart`: every buffer is an allocation of the driver's own. */
  constructor(
    readonly card: Card,
    isApart = false,
  ) {
    this.slabs = new Slabs(card, isApart);
  }

  /** The address of that many bytes, which hold anything. */
  take(bytes: number): number {
    const size = Math.ceil(Math.max(bytes, 1) / alignment) * alignment;
    const address = this.piece(size);
    this.taken.set(address, size);
    this.bytes += size;
    return address;
  }

  /** Commands that are queued may still use it. */
  give(address: number): void {
    const size = this.taken.get(address);
    if (size === undefined) throw new Error('Memory of the card was given back already');
    this.taken.delete(address);
    this.bytes -= size;
    this.slabs.give(address, size);
  }

  alloc(length: number, type: ElementType = 'float32'): DeviceBuffer {
    return new CardBuffer(this, this.take(length * elementBytes[type]), length, type, null);
  }

  allocTogether(lengths: readonly number[]): { whole: DeviceBuffer; parts: DeviceBuffer[] } {
    const places: number[] = [];
    let end = 0;
    for (const length of lengths) {
      places.push(end);
      end += Math.ceil((4 * length) / partAlignment) * partAlignment;
    }
    const whole = this.alloc(end / 4);
    this.zero(whole);
    const begin = this.addressOf(whole, 'allocTogether');
    const parts = lengths.map(
      (length, index) => new CardBuffer(this, begin + places[index]!, length, 'float32', begin),
    );
    return { whole, parts };
  }

  zero(buffer: DeviceBuffer): void {
    const address = this.addressOf(buffer, 'zero');
    this.written(buffer);
    if (buffer.length > 0) this.card.fill(address, 0, buffer.length * elementBytes[buffer.type]);
  }

  upload(buffer: DeviceBuffer, values: HostValues): void {
    const isParked = this.own(buffer, 'upload').host !== null;
    const address = this.addressOf(buffer, 'upload');
    const kind = values instanceof Float32Array ? 'float32' : values instanceof Int8Array ? 'int8' : 'uint8';
    if (kind !== buffer.type || values.length !== buffer.length)
      throw new RangeError(
        `upload: values must be ${buffer.length} of ${buffer.type}, not ${values.length} of ${kind}`,
      );
    this.card.upload(address, values);
    this.written(buffer);
    if (isParked) this.park(buffer);
  }

  async download(buffer: DeviceBuffer): Promise<HostValues> {
    if (buffer.type === 'activation') throw new TypeError('download: an activation has no type of its own');
    const scope = new Scope(this);
    const address = this.staged(buffer, 'download', scope);
    const { length, type } = buffer;
    const values =
      type === 'float32'
        ? new Float32Array(length)
        : type === 'int8'
          ? new Int8Array(length)
          : new Uint8Array(length);
    // Queued before anybody can take what was staged.
    const done = length > 0 ? this.card.downloadLater(values, address) : null;
    scope.end();
    await done;
    return values;
  }

  convert(to: DeviceBuffer, from: DeviceBuffer): void {
    const [target, source] = [
      this.floats(to, from.length, 'convert: to'),
      this.floats(from, to.length, 'convert: from'),
    ];
    if (to.length > 0) this.card.copy(target, source, 4 * to.length);
    this.written(to);
  }

  release(buffer: DeviceBuffer | null): void {
    if (buffer === null) return;
    const of = this.own(buffer, 'release');
    if (of.isPart) throw new TypeError('release: parts belong to their whole');
    of.half?.release();
    of.half = null;
    if (of.host !== null) this.card.releaseHost(of.host);
    else this.give(of.address!);
    of.address = of.host = null;
  }

  /** Moves the values to pinned memory of the host; what reads them has them brought back for as long as it needs them. */
  park(buffer: DeviceBuffer): void {
    const of = this.own(buffer, 'park');
    if (of.host !== null || of.length === 0) return;
    if (of.isPart) throw new TypeError('park: parts belong to their whole');
    const bytes = of.length * elementBytes[of.type];
    of.host = this.card.allocateHost(bytes);
    this.card.downloadHost(of.host, of.address!, bytes);
    this.give(of.address!);
    of.address = null;
  }

  /** Where the values lie on the card until the scope ends: for parked ones a copy. */
  staged(buffer: DeviceBuffer, field: string, scope: Scope): number {
    const { host, length, type } = this.own(buffer, field);
    if (host === null) return this.addressOf(buffer, field);
    const bytes = length * elementBytes[type];
    const address = scope.take(bytes);
    this.card.uploadHost(address, host, bytes);
    return address;
  }

  /** Floats that lie on the card at least until the scope ends. */
  stagedFloats(buffer: DeviceBuffer, length: number, field: string, scope: Scope): number {
    if (elementBytes[buffer.type] !== 4 || buffer.length !== length)
      return this.floats(buffer, length, field);
    return this.staged(buffer, field, scope);
  }

  /** What was changed in a staged copy becomes the parked values. */
  keepStaged(buffer: DeviceBuffer, address: number): void {
    const { host, length, type } = this.own(buffer, 'keepStaged');
    if (host !== null) this.card.downloadHost(host, address, length * elementBytes[type]);
    this.written(buffer);
  }

  halfOf(buffer: DeviceBuffer): Half | null {
    return (buffer as CardBuffer).half;
  }

  /** Keeps the bfloat16 of a buffer in `matrix` from now on; it is stale. */
  keepHalf(buffer: DeviceBuffer, matrix: Matrix, release: () => void): Half {
    const of = this.own(buffer, 'half');
    of.half?.release();
    return (of.half = { matrix, isStale: true, hasCodes: false, release });
  }

  /** Its values were changed by something that does not write their bfloat16. */
  written(buffer: DeviceBuffer): void {
    const { half } = buffer as CardBuffer;
    if (half !== null) half.isStale = true;
  }

  trim(): void {
    this.slabs.trim();
  }

  discard(_values: HostValues): void {
    // What a card's job holds on the host are single tensors.
  }

  reserve(bytes: number): number | null {
    const { allocatedBytes, freeBytes } = this.card.memory();
    const missing = bytes - allocatedBytes;
    if (missing > freeBytes) return allocatedBytes + freeBytes;
    this.slabs.reserve(missing);
    return null;
  }

  memory(): { count: number; bytes: number } {
    return { count: this.taken.size, bytes: this.bytes };
  }

  /** Where a buffer of floats of that length lies. */
  floats(buffer: DeviceBuffer, length: number, field: string): number {
    const address = this.addressOf(buffer, field);
    if (elementBytes[buffer.type] !== 4)
      throw new TypeError(`${field}: expected a buffer of floats, not of ${buffer.type}`);
    if (buffer.length !== length)
      throw new RangeError(`${field}: expected ${length} elements, got ${buffer.length}`);
    return address;
  }

  /** Where buffers of floats lie, those that lie one after another in one allocation together, with the zeros between them. */
  spansOf(buffers: readonly DeviceBuffer[], field: string): { address: number; length: number }[] {
    const spans: { address: number; length: number; end: number }[] = [];
    for (const buffer of buffers) {
      const address = this.floats(buffer, buffer.length, field);
      const last = spans.at(-1);
      const { isPart } = buffer as CardBuffer;
      const end = address + Math.ceil((4 * buffer.length) / partAlignment) * partAlignment;
      if (isPart && last?.end === address) {
        Object.assign(last, { length: (address - last.address) / 4 + buffer.length, end });
      } else spans.push({ address, length: buffer.length, end: isPart ? end : NaN });
    }
    return spans;
  }

  /** Whether they are parts of one allocation: then their distances depend on its lengths alone. */
  areTogether(buffers: readonly DeviceBuffer[]): boolean {
    const wholes = new Set(buffers.map((buffer) => (buffer as CardBuffer).whole));
    return wholes.size === 1 && !wholes.has(null);
  }

  codes(buffer: DeviceBuffer, length: number, type: 'int8' | 'uint8', field: string): number {
    const address = this.addressOf(buffer, field);
    if (buffer.type !== type || buffer.length !== length)
      throw new RangeError(`${field}: expected ${length} of ${type}, got ${buffer.length} of ${buffer.type}`);
    return address;
  }

  private own(buffer: DeviceBuffer, field: string): CardBuffer {
    if (!(buffer instanceof CardBuffer) || buffer.owner !== this)
      throw new TypeError(`${field}: the buffer is not of this device`);
    if (buffer.address === null && buffer.host === null)
      throw new Error(`${field}: the buffer was given back already`);
    return buffer;
  }

  /** What was parked comes back for good: to be trained, or for a call that seldom reads it. */
  private addressOf(buffer: DeviceBuffer, field: string): number {
    const of = this.own(buffer, field);
    const { host, length, type } = of;
    if (host === null) return of.address!;
    const bytes = length * elementBytes[type];
    of.address = this.take(bytes);
    of.host = null;
    this.card.uploadHost(of.address, host, bytes);
    this.card.releaseHost(host);
    return of.address;
  }

  private piece(size: number): number {
    try {
      return this.slabs.take(size);
    } catch (error) {
      if (!(error instanceof DeviceFault) || error.reason !== 'DEVICE_OUT_OF_MEMORY') throw error;
    }
    this.trim();
    try {
      return this.slabs.take(size);
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

/** Memory that is given back together: of one call, or of the state that a half keeps. */
export class Scope {
  private readonly held: number[] = [];

  constructor(private readonly memory: CardMemory) {}

  take(bytes: number): number {
    const address = this.memory.take(bytes);
    this.held.push(address);
    return address;
  }

  end(): void {
    for (const address of this.held.splice(0)) this.memory.give(address);
  }
}
