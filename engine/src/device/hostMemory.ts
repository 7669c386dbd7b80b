import { BufferPool } from './bufferPool.js';
import type { DeviceBuffer, DeviceMemory, ElementType, HostValues } from './device.js';

/** Bytes of free buffers kept for the next step; a step of llama-130m with 4096 tokens allocates about this much. */
const freeBytesMax = 3 * 2 ** 30;
/** Parts of one allocation begin at cache lines. */
const floatsPerLine = 16;

/** A buffer in the memory of this process. */
class HostBuffer implements DeviceBuffer {
  readonly length: number;
  /** The values are in a mapped file, which the system may keep on disk only. */
  isMapped = false;

  constructor(
    /** Null once released. */
    public values: HostValues | null,
    readonly type: ElementType,
    /** Whether the values came from the pool and return to it; parts of an allocation belong to the whole. */
    readonly isPooled: boolean,
  ) {
    this.length = values!.length;
  }
}

/** Memory of devices that compute in JavaScript's memory: typed arrays; float32 arrays are reused by length. */
export class HostMemory implements DeviceMemory {
  readonly isHost = true;
  private readonly pool = new BufferPool(freeBytesMax);
  private count = 0;
  private bytes = 0;

  alloc(length: number, type: ElementType = 'float32'): DeviceBuffer {
    const isFloat = type === 'float32' || type === 'activation';
    const values = isFloat
      ? this.pool.take(length)
      : type === 'int8'
        ? new Int8Array(length)
        : new Uint8Array(length);
    return this.held(new HostBuffer(values, type, isFloat));
  }

  allocTogether(lengths: readonly number[]): { whole: DeviceBuffer; parts: DeviceBuffer[]; ends: number[] } {
    const places: number[] = [];
    let end = 0;
    for (const length of lengths) {
      places.push(end);
      end += Math.ceil(length / floatsPerLine) * floatsPerLine;
    }
    const whole = this.alloc(end);
    const values = this.floats(whole).fill(0);
    const parts = lengths.map(
      (length, index) =>
        new HostBuffer(values.subarray(places[index]!, places[index]! + length), 'float32', false),
    );
    return { whole, parts, ends: lengths.map((length, index) => places[index]! + length) };
  }

  zero(buffer: DeviceBuffer): void {
    this.values(buffer).fill(0);
  }

  upload(buffer: DeviceBuffer, values: HostValues): void {
    const target = this.values(buffer);
    if (kindOf(target) !== kindOf(values) || target.length !== values.length)
      throw new RangeError(
        `upload: values must be ${target.length} of ${buffer.type}, not ${values.length} of ${kindOf(values)}`,
      );
    target.set(values);
    this.rest(buffer);
  }

  download(buffer: DeviceBuffer, into?: HostValues): Promise<HostValues> {
    if (buffer.type === 'activation')
      return Promise.reject(new TypeError('download: an activation has no type of its own'));
    const held = this.values(buffer);
    into?.set(held);
    const values = into ?? held.slice();
    this.rest(buffer);
    return Promise.resolve(values);
  }

  async changeOnHost(buffer: DeviceBuffer, change: (values: Float32Array) => Promise<void>): Promise<void> {
    await change(this.floats(buffer));
    this.rest(buffer);
  }

  convert(to: DeviceBuffer, from: DeviceBuffer): void {
    this.floats(to).set(this.floats(from));
  }

  release(buffer: DeviceBuffer | null): void {
    if (buffer === null) return;
    const host = buffer as HostBuffer;
    const values = this.values(host);
    this.count--;
    this.bytes -= values.byteLength;
    host.values = null;
    if (host.isPooled && !host.isMapped) this.pool.give(values as Float32Array);
  }

  reserve(_bytes: number): null {
    return null;
  }

  trim(): void {
    for (const array of this.pool.clear()) this.discard(array);
  }

  discard(_values: HostValues): void {
    // JavaScript cannot free memory explicitly; the garbage collector will.
  }

  memory(): { count: number; bytes: number } {
    return { count: this.count, bytes: this.bytes };
  }

  /** The floats of a buffer, not a copy: for immediate use only. */
  floats(buffer: DeviceBuffer): Float32Array {
    const values = this.values(buffer);
    if (!(values instanceof Float32Array))
      throw new TypeError(`Expected a buffer of floats, not of ${buffer.type}`);
    return values;
  }

  /** The codes of an 8-bit buffer. */
  codes<T extends Int8Array | Uint8Array>(buffer: DeviceBuffer): T {
    const values = this.values(buffer);
    if (values instanceof Float32Array) throw new TypeError(`Expected a buffer of codes, not of floats`);
    return values as T;
  }

  /** Floats for a kernel or a state, with arbitrary contents. To be returned by `give`. */
  take(length: number): Float32Array {
    this.count++;
    this.bytes += 4 * length;
    return this.pool.take(length);
  }

  /** The caller must hold no other reference to the array. */
  give(array: Float32Array): void {
    this.count--;
    this.bytes -= array.byteLength;
    this.pool.give(array);
  }

  /** Moves a buffer's values permanently into `mapped`, of the same length. */
  protected moveInto(buffer: DeviceBuffer, mapped: Float32Array): void {
    const host = buffer as HostBuffer;
    mapped.set(this.floats(buffer));
    host.values = mapped;
    host.isMapped = true;
  }

  isMapped(buffer: DeviceBuffer): boolean {
    return (buffer as HostBuffer).isMapped;
  }

  /** Hints that the values of a mapped buffer will not be needed for a while. */
  rest(_buffer: DeviceBuffer): void {
    // Plain memory needs nothing.
  }

  private held(buffer: HostBuffer): HostBuffer {
    this.count++;
    this.bytes += buffer.values!.byteLength;
    return buffer;
  }

  private values(buffer: DeviceBuffer): HostValues {
    if (!(buffer instanceof HostBuffer)) throw new TypeError('The buffer is not of this device');
    if (buffer.values === null) throw new Error('The buffer was given back already');
    return buffer.values;
  }
}

/** A Buffer is a Uint8Array. */
function kindOf(values: HostValues): ElementType {
  return values instanceof Float32Array ? 'float32' : values instanceof Int8Array ? 'int8' : 'uint8';
}
