import type { DeviceBuffer, DeviceMemory, ElementType, HostValues } from '../device.js';
import { CardBuffer, elementBytes, type Half } from './cardBuffer.js';
import { CardPieces } from './cardPieces.js';
import type { Matrix } from './matrix.js';
import type { Feeds } from './feeds.js';
import { Scope } from './scope.js';

/** Alignment of parts of one allocation, in elements; kernels move 16 bytes at a time. */
const partAlignment = 64;

/** Buffers in a card's memory, with the copies that products read; some buffers are parked on the host. */
export class CardMemory extends CardPieces implements DeviceMemory {
  readonly isHost = false;
  private feeds: Feeds | null = null;

  /** Routes uploads of `work` through the feeds; null: uploads are direct. */
  feeding(feeds: Feeds | null, work: () => void): void {
    this.feeds = feeds;
    try {
      work();
    } finally {
      this.feeds = null;
    }
  }

  /** Allocates memory that `fill` uploads to, with contents that differ from call to call. */
  fed(scope: Scope, bytes: number, fill: (at: number) => void): number {
    if (this.feeds !== null) return this.feeds.place(scope, bytes, fill);
    const at = scope.take(bytes);
    fill(at);
    return at;
  }

  /** The same for the caller's memory, once for all uses of `key`. */
  fedOnce(key: object, fill: () => void): void {
    if (this.feeds === null) fill();
    else this.feeds.once(key, fill);
  }

  alloc(length: number, type: ElementType = 'float32'): DeviceBuffer {
    return new CardBuffer(this, this.take(length * elementBytes[type]), length, type, null);
  }

  allocTogether(lengths: readonly number[]): { whole: DeviceBuffer; parts: DeviceBuffer[]; ends: number[] } {
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
    return { whole, parts, ends: lengths.map((length, index) => places[index]! / 4 + length) };
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
    // Queued before the staged memory can be reused.
    const done = length > 0 ? this.card.downloadLater(values, address) : null;
    scope.end();
    await done;
    return values;
  }

  async changeOnHost(buffer: DeviceBuffer, change: (values: Float32Array) => Promise<void>): Promise<void> {
    const values = (await this.download(buffer)) as Float32Array;
    await change(values);
    this.upload(buffer, values);
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
    else if (!of.isTakenOver) this.give(of.address!);
    of.address = of.host = null;
    of.isTakenOver = false;
  }

  /** Frees the memory of a buffer whose values a state contains: from now on the buffer can only be released. */
  takeOver(buffer: DeviceBuffer): void {
    const of = this.own(buffer, 'takeOver');
    if (of.isPart) throw new TypeError('takeOver: parts belong to their whole');
    this.give(this.addressOf(buffer, 'takeOver'));
    of.half?.release();
    of.half = of.address = null;
    of.isTakenOver = true;
  }

  /** Moves the values to pinned host memory; a use copies them back for as long as it needs them. */
  park(buffer: DeviceBuffer): void {
    const of = this.own(buffer, 'park');
    if (of.host !== null || of.length === 0) return;
    if (of.isPart) throw new TypeError('park: parts belong to their whole');
    of.host = this.card.allocateHost(of.bytes);
    this.card.downloadHost(of.host, of.address!, of.bytes);
    this.give(of.address!);
    of.address = null;
  }

  /** Address of the values on the card until the scope ends: a copy if they are parked. */
  staged(buffer: DeviceBuffer, field: string, scope: Scope): number {
    const { host, bytes } = this.own(buffer, field);
    if (host === null) return this.addressOf(buffer, field);
    const address = scope.take(bytes);
    this.card.uploadHost(address, host, bytes);
    return address;
  }

  /** Floats that are on the card at least until the scope ends. */
  stagedFloats(buffer: DeviceBuffer, length: number, field: string, scope: Scope): number {
    if (elementBytes[buffer.type] !== 4 || buffer.length !== length)
      return this.floats(buffer, length, field);
    return this.staged(buffer, field, scope);
  }

  /** Copies a changed staged copy back to the parked values. */
  keepStaged(buffer: DeviceBuffer, address: number): void {
    const { host, bytes } = this.own(buffer, 'keepStaged');
    if (host !== null) this.card.downloadHost(host, address, bytes);
    this.written(buffer);
  }

  halfOf(buffer: DeviceBuffer): Half | null {
    return (buffer as CardBuffer).half;
  }

  /** From now on `matrix` is the bfloat16 copy of a buffer; it starts out stale. */
  keepHalf(buffer: DeviceBuffer, matrix: Matrix, release: () => void): Half {
    const of = this.own(buffer, 'half');
    if (buffer.type === 'float32') this.changed();
    of.half?.release();
    return (of.half = { matrix, isStale: true, hasCodes: false, release });
  }

  /** The values were changed without updating their bfloat16 copy. */
  written(buffer: DeviceBuffer): void {
    const { half, type } = buffer as CardBuffer;
    if (half === null) return;
    if (!half.isStale && type === 'float32') this.changed();
    half.isStale = true;
  }

  discard(_values: HostValues): void {
    // A card's job holds only single tensors on the host.
  }

  /** Address of a buffer of floats of that length. */
  floats(buffer: DeviceBuffer, length: number, field: string): number {
    const address = this.addressOf(buffer, field);
    if (elementBytes[buffer.type] !== 4)
      throw new TypeError(`${field}: expected a buffer of floats, not of ${buffer.type}`);
    if (buffer.length !== length)
      throw new RangeError(`${field}: expected ${length} elements, got ${buffer.length}`);
    return address;
  }

  /** Addresses of float buffers; consecutive parts of one allocation form one span, including the zeros between them. */
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

  /** Whether they are parts of one allocation: then their distances depend only on its lengths. */
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
    if (buffer.address === null && buffer.host === null && !buffer.isTakenOver)
      throw new Error(`${field}: the buffer was given back already`);
    return buffer;
  }

  /** Address of a buffer. Parked values come back for good: to be trained, or for a call that rarely reads them. */
  private addressOf(buffer: DeviceBuffer, field: string): number {
    const of = this.own(buffer, field);
    const { host, bytes } = of;
    if (of.isTakenOver) throw new Error(`${field}: a state has taken the buffer over`);
    if (host === null) return of.address!;
    of.address = this.take(bytes);
    of.host = null;
    this.card.uploadHost(of.address, host, bytes);
    this.card.releaseHost(host);
    return of.address;
  }
}
