import type { CodedMoment, Device, DeviceBuffer } from '../device/device.js';
import { decode, encode, scaleCount, type CodedValues } from '../device/momentCodes.js';
import type { StoredValues, TensorSource } from '../io/safetensors.js';
import { valuesOf, type Parameter } from '../model/parameter.js';
import type { EntryMoments } from './momentReset.js';
import type { Staging } from './staging.js';

/** Reads a stored tensor from a checkpoint by name; null if it is missing. */
export type MomentReader = (name: string) => Promise<StoredValues | null>;

/** The moments of one parameter, in float32: both, or only the first. */
export class Float32Moments {
  readonly first: DeviceBuffer;
  /** Null if the optimizer has no second moment. */
  readonly second: DeviceBuffer | null;

  constructor(
    private readonly device: Device,
    private readonly parameter: Parameter,
    { hasSecond = true } = {},
  ) {
    this.first = zeros(device, parameter.buffer.length);
    this.second = hasSecond ? zeros(device, parameter.buffer.length) : null;
  }

  /** Returns copies. */
  async values(): Promise<EntryMoments> {
    return {
      first: await valuesOf(this.device, { buffer: this.first }),
      second: this.second === null ? none : await valuesOf(this.device, { buffer: this.second }),
    };
  }

  /** Zeroes the entries that are zero in the argument; other entries do not change. */
  forget({ first, second }: EntryMoments): Promise<void> {
    this.device.upload(this.first, first);
    if (this.second !== null) this.device.upload(this.second, second);
    return Promise.resolve();
  }

  /** Replaces the first moments of this parameter. */
  replaceFirst(values: Float32Array): Promise<void> {
    this.device.upload(this.first, values);
    return Promise.resolve();
  }

  *stored(name: string, staging?: Staging): Generator<TensorSource> {
    const source = (suffix: string, buffer: DeviceBuffer): TensorSource => ({
      name: `${name}.${suffix}`,
      shape: [...this.parameter.shape],
      dtype: 'F32',
      read: () =>
        staging?.read(this.device, buffer) ?? (this.device.download(buffer) as Promise<StoredValues>),
    });
    yield source('first_moment', this.first);
    if (this.second !== null) yield source('second_moment', this.second);
  }

  async restore(name: string, read: MomentReader): Promise<void> {
    for (const moment of ['first', 'second'] as const) {
      const buffer = this[moment];
      if (buffer === null) continue;
      const kept = await readMoment(`${name}.${moment}_moment`, read);
      this.device.upload(buffer, kept instanceof Float32Array ? kept : decode(kept));
    }
  }

  dispose(): void {
    this.device.release(this.first);
    this.device.release(this.second);
  }
}

const none = new Float32Array(0);

/** The same with 8-bit codes. */
export class CodedMoments {
  readonly first: CodedMoment;
  readonly second: CodedMoment | null;

  constructor(
    private readonly device: Device,
    private readonly parameter: Parameter,
    { hasSecond = true } = {},
  ) {
    const { length } = parameter.buffer;
    const coded = (type: 'int8' | 'uint8'): CodedMoment => ({
      codes: zeros(device, length, type),
      scales: zeros(device, scaleCount(length)),
    });
    this.first = coded('int8');
    this.second = hasSecond ? coded('uint8') : null;
  }

  async values(): Promise<EntryMoments> {
    const { first, second } = this;
    return {
      first: decode(await this.coded(first)),
      second: second === null ? none : decode(await this.coded(second)),
    };
  }

  /** Scales do not change, so entries that are kept have the same codes and values. */
  async forget(values: EntryMoments): Promise<void> {
    for (const [moment, held] of this.held()) {
      const { codes } = await this.coded(held);
      values[moment].forEach((value, entry) => {
        if (value === 0) codes[entry] = 0;
      });
      this.device.upload(held.codes, codes);
    }
  }

  async replaceFirst(values: Float32Array): Promise<void> {
    await this.encode(this.first, values);
  }

  *stored(name: string): Generator<TensorSource> {
    for (const [moment, { codes, scales }] of this.held()) {
      const dtype = moment === 'first' ? 'I8' : 'U8';
      const read = (buffer: DeviceBuffer) => () => this.device.download(buffer) as Promise<StoredValues>;
      yield { name: `${name}.${moment}_moment`, shape: [...this.parameter.shape], dtype, read: read(codes) };
      yield {
        name: `${name}.${moment}_moment_scales`,
        shape: [scales.length],
        dtype: 'F32',
        read: read(scales),
      };
    }
  }

  async restore(name: string, read: MomentReader): Promise<void> {
    for (const [moment, held] of this.held()) {
      const kept = await readMoment(`${name}.${moment}_moment`, read);
      if (kept instanceof Float32Array) {
        await this.encode(held, kept);
        continue;
      }
      this.device.upload(held.codes, kept.codes);
      this.device.upload(held.scales, kept.scales);
    }
  }

  dispose(): void {
    for (const [, { codes, scales }] of this.held()) {
      this.device.release(codes);
      this.device.release(scales);
    }
  }

  private *held(): Generator<['first' | 'second', CodedMoment]> {
    yield ['first', this.first];
    if (this.second !== null) yield ['second', this.second];
  }

  private async encode(held: CodedMoment, values: Float32Array): Promise<void> {
    const coded = await this.coded(held);
    encode(coded, values);
    this.device.upload(held.codes, coded.codes);
    this.device.upload(held.scales, coded.scales);
  }

  private async coded({ codes, scales }: CodedMoment): Promise<CodedValues> {
    return {
      codes: (await this.device.download(codes)) as Int8Array | Uint8Array,
      scales: await valuesOf(this.device, { buffer: scales }),
    };
  }
}

function zeros(device: Device, length: number, type: 'float32' | 'int8' | 'uint8' = 'float32'): DeviceBuffer {
  const buffer = device.alloc(length, type);
  device.zero(buffer);
  return buffer;
}

/** In the stored type: a run that is resumed with another type of moments converts their values. */
async function readMoment(name: string, read: MomentReader): Promise<Float32Array | CodedValues> {
  const codes = await read(name);
  if (codes instanceof Float32Array) return codes;
  const scales = await read(`${name}_scales`);
  if (codes === null || !(scales instanceof Float32Array)) throw new Error(`${name} is not whole`);
  return { codes, scales };
}
