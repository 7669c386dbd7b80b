import { DeviceFault } from '../deviceFaults.js';
import type { DeviceBuffer, DeviceMemory, ElementType, HostValues } from '../device.js';
import type { Card } from './cudaAddon.js';

/** What flows between the halves is float32 here too: what a probe computes from it is exact, and it costs a step little. */
const elementBytes: Record<ElementType, number> = { float32: 4, activation: 4, int8: 1, uint8: 1 };
/** The driver aligns allocations to this. */
const alignment = 256;
/** Parts of one allocation begin at multiples of it: 16 bytes are moved as one. */
const partAlignment = 64;

class CardBuffer implements DeviceBuffer {
  constructor(
    readonly owner: CardMemory,
    /** Null once it was given back. */
    public address: number | null,
    readonly length: number,
    readonly type: ElementType,
    readonly isPart: boolean,
  ) {}
}

/** Memory of a card. What is given back is used again for what needs as much: commands run in order, so none can see another's. */
export class CardMemory implements DeviceMemory {
  private readonly free = new Map<number, number[]>();
  private readonly taken = new Map<number, number>();
  private bytes = 0;

  constructor(readonly card: Card) {}

  /** The address of that many bytes, which hold anything. */
  take(bytes: number): number {
    const size = Math.ceil(Math.max(bytes, 1) / alignment) * alignment;
    const address = this.free.get(size)?.pop() ?? this.allocate(size);
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
    const others = this.free.get(size);
    if (others === undefined) this.free.set(size, [address]);
    else others.push(address);
  }

  alloc(length: number, type: ElementType = 'float32'): DeviceBuffer {
    return new CardBuffer(this, this.take(length * elementBytes[type]), length, type, false);
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
      (length, index) => new CardBuffer(this, begin + places[index]!, length, 'float32', true),
    );
    return { whole, parts };
  }

  zero(buffer: DeviceBuffer): void {
    const address = this.addressOf(buffer, 'zero');
    if (buffer.length > 0) this.card.fill(address, 0, buffer.length * elementBytes[buffer.type]);
  }

  upload(buffer: DeviceBuffer, values: HostValues): void {
    const address = this.addressOf(buffer, 'upload');
    const kind = values instanceof Float32Array ? 'float32' : values instanceof Int8Array ? 'int8' : 'uint8';
    if (kind !== buffer.type || values.length !== buffer.length)
      throw new RangeError(
        `upload: values must be ${buffer.length} of ${buffer.type}, not ${values.length} of ${kind}`,
      );
    this.card.upload(address, values);
  }

  async download(buffer: DeviceBuffer): Promise<HostValues> {
    if (buffer.type === 'activation') throw new TypeError('download: an activation has no type of its own');
    const address = this.addressOf(buffer, 'download');
    const { length, type } = buffer;
    const values =
      type === 'float32'
        ? new Float32Array(length)
        : type === 'int8'
          ? new Int8Array(length)
          : new Uint8Array(length);
    if (length > 0) await this.card.downloadLater(values, address);
    return values;
  }

  convert(to: DeviceBuffer, from: DeviceBuffer): void {
    const [target, source] = [
      this.floats(to, from.length, 'convert: to'),
      this.floats(from, to.length, 'convert: from'),
    ];
    if (to.length > 0) this.card.copy(target, source, 4 * to.length);
  }

  release(buffer: DeviceBuffer | null): void {
    if (buffer === null) return;
    const address = this.addressOf(buffer, 'release');
    if ((buffer as CardBuffer).isPart) throw new TypeError('release: parts belong to their whole');
    (buffer as CardBuffer).address = null;
    this.give(address);
  }

  trim(): void {
    for (const addresses of this.free.values()) for (const address of addresses) this.card.release(address);
    this.free.clear();
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

  codes(buffer: DeviceBuffer, length: number, type: 'int8' | 'uint8', field: string): number {
    const address = this.addressOf(buffer, field);
    if (buffer.type !== type || buffer.length !== length)
      throw new RangeError(`${field}: expected ${length} of ${type}, got ${buffer.length} of ${buffer.type}`);
    return address;
  }

  private addressOf(buffer: DeviceBuffer, field: string): number {
    if (!(buffer instanceof CardBuffer) || buffer.owner !== this)
      throw new TypeError(`${field}: the buffer is not of this device`);
    if (buffer.address === null) throw new Error(`${field}: the buffer was given back already`);
    return buffer.address;
  }

  private allocate(size: number): number {
    try {
      return this.card.allocate(size);
    } catch (error) {
      if (!(error instanceof DeviceFault) || error.reason !== 'DEVICE_OUT_OF_MEMORY') throw error;
    }
    this.trim();
    try {
      return this.card.allocate(size);
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
