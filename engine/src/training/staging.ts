import type { Device, DeviceBuffer } from '../device/device.js';

/**
 * One array through which tensors are read one after another; each is valid until the next read. Separate copies would pile up until
 * garbage collection.
 */
export class Staging {
  private values = new Float32Array(0);

  /** The values of a float32 buffer. */
  async read(device: Device, buffer: DeviceBuffer): Promise<Float32Array> {
    if (this.values.length < buffer.length) this.values = new Float32Array(buffer.length);
    return (await device.download(buffer, this.values.subarray(0, buffer.length))) as Float32Array;
  }
}
