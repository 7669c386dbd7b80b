import type { Device, DeviceBuffer } from '../device/device.js';
import type { StoredValues, TensorSource } from '../io/safetensors.js';
import type { Parameter } from '../model/parameter.js';
import { Random } from '../random.js';
import type { EntryMoments } from './momentReset.js';
import type { MomentReader } from './moments.js';

/** Updates that use the same projection direction before a new one is drawn (arXiv 2412.05270). */
export const updatesPerDirection = 200;

const parts = ['first', 'second', 'norm'] as const;
const names = { first: 'shadow_first_moment', second: 'shadow_second_moment', norm: 'last_norm' };

/** Optimizer state of APOLLO-Mini for a matrix: moments of its gradient projected on one direction, and the norm of the last update. */
export class ShadowMoments {
  readonly projection: DeviceBuffer;
  readonly first: DeviceBuffer;
  readonly second: DeviceBuffer;
  readonly norm: DeviceBuffer;
  private direction = -1;

  constructor(
    private readonly device: Device,
    private readonly parameter: Parameter,
  ) {
    const [rows, columns] = parameter.shape as [number, number];
    const zeros = (length: number): DeviceBuffer => {
      const buffer = device.alloc(length);
      device.zero(buffer);
      return buffer;
    };
    this.projection = zeros(Math.min(rows, columns));
    this.first = zeros(Math.max(rows, columns));
    this.second = zeros(Math.max(rows, columns));
    this.norm = zeros(1);
  }

  /** Sets the projection direction for update `count` (from 1): a function of the seed, the weight and the count. */
  turn(seed: number, count: number): void {
    const direction = Math.floor((count - 1) / updatesPerDirection);
    if (direction === this.direction) return;
    this.direction = direction;
    const values = new Float32Array(this.projection.length);
    Random.forStream(seed, 'projection', this.parameter.name, direction).fillNormal(values, 1);
    this.device.upload(this.projection, values);
  }

  values(): Promise<EntryMoments> {
    return Promise.reject(new Error('Moments of shadows have no entries of a weight'));
  }

  forget(): Promise<void> {
    return Promise.reject(new Error('Moments of shadows are not reset'));
  }

  *stored(name: string): Generator<TensorSource> {
    for (const part of parts) {
      const buffer = this[part];
      yield {
        name: `${name}.${names[part]}`,
        shape: [buffer.length],
        dtype: 'F32',
        read: () => this.device.download(buffer) as Promise<StoredValues>,
      };
    }
  }

  static async isStored(name: string, read: MomentReader): Promise<boolean> {
    return (await read(`${name}.${names.first}`)) !== null;
  }

  async restore(name: string, read: MomentReader): Promise<void> {
    for (const part of parts) {
      const values = await read(`${name}.${names[part]}`);
      if (!(values instanceof Float32Array)) throw new Error(`${name}.${names[part]} is not whole`);
      this.device.upload(this[part], values);
    }
  }

  dispose(): void {
    for (const buffer of [this.projection, this.first, this.second, this.norm]) this.device.release(buffer);
  }
}
