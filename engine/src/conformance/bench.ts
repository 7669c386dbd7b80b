import type { Device, DeviceBuffer, Documents } from '../device/device.js';
import { seeded } from './seeded.js';

/** Creates and reads the buffers of one case on one device, and releases them. */
export class Bench {
  private readonly held: DeviceBuffer[] = [];
  private readonly documents: Documents[] = [];
  private readonly outputs = new Map<string, DeviceBuffer>();

  constructor(
    readonly device: Device,
    /** Changes an input before use, for finite differences. */
    private readonly changed: (name: string, values: Float32Array) => Float32Array = (_, values) => values,
  ) {}

  /** Normally distributed numbers, seeded by name. */
  input(name: string, length: number, std = 1): DeviceBuffer {
    return this.given(name, seeded(length, name, std));
  }

  /** The same as an activation. */
  stream(name: string, length: number): DeviceBuffer {
    return this.converted(this.input(name, length));
  }

  given(name: string, values: Float32Array): DeviceBuffer {
    const buffer = this.hold(this.device.alloc(values.length));
    this.device.upload(buffer, this.changed(name, values));
    return buffer;
  }

  /** An output of a call, which appears under this name in the results; initially NaN. */
  output(name: string, length: number): DeviceBuffer {
    const buffer = this.hold(this.device.alloc(length));
    this.device.upload(buffer, new Float32Array(length).fill(NaN));
    this.outputs.set(name, buffer);
    return buffer;
  }

  outputStream(name: string, length: number): DeviceBuffer {
    const buffer = this.converted(this.output(name, length));
    this.outputs.set(name, buffer);
    return buffer;
  }

  /** Where the document of each position begins. */
  masked(begins: Int32Array, time: number): Documents {
    const documents = this.device.newDocuments(begins, time);
    this.documents.push(documents);
    return documents;
  }

  /** Adds an input that a call modifies to the results. */
  changes(name: string, buffer: DeviceBuffer): DeviceBuffer {
    this.outputs.set(name, buffer);
    return buffer;
  }

  async results(more: Record<string, ArrayLike<number>>): Promise<Map<string, Float32Array>> {
    const found = new Map<string, Float32Array>();
    for (const [name, buffer] of this.outputs) {
      if (buffer.type !== 'activation') {
        found.set(name, Float32Array.from(await this.device.download(buffer)));
        continue;
      }
      const floats = this.hold(this.device.alloc(buffer.length));
      this.device.convert(floats, buffer);
      found.set(name, (await this.device.download(floats)) as Float32Array);
    }
    for (const [name, values] of Object.entries(more)) found.set(name, Float32Array.from(values));
    for (const buffer of this.held.splice(0)) this.device.release(buffer);
    for (const documents of this.documents.splice(0)) this.device.releaseDocuments(documents);
    return found;
  }

  hold(buffer: DeviceBuffer): DeviceBuffer {
    this.held.push(buffer);
    return buffer;
  }

  private converted(floats: DeviceBuffer): DeviceBuffer {
    const buffer = this.hold(this.device.alloc(floats.length, 'activation'));
    this.device.convert(buffer, floats);
    return buffer;
  }
}
