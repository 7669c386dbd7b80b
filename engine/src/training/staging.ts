import type { Device, DeviceBuffer } from '../device/device.js';

/** One array through which tensors are read one after another, each valid until the next: copies of all of them would wait for the collector. */
export class Staging {
  private values = new Float32Array(0);

  /** The values of a float32 buffer. */
  async read(device: Device, buffer: DeviceBuffer): Promise<Float32Array> {
    if (this.values.length < buffer.length) this.values = new Float32Array(buffer.length);
    return (await device.download(buffer, this.values.subarray(0, buffer.length))) as Float32Array;
  }
}
