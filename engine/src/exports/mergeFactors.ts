import type { Device, DeviceBuffer } from '../device/device.js';
import { MergeNotFinite } from '../model/adapterSet.js';
import { valuesOf } from '../model/parameter.js';
import type { AdapterFactors } from './weightSource.js';

/** W + scale A B [in, out], by the same call as a run's merges, so that exports from a checkpoint and from the run have the same bits. */
export async function mergeFactors(
  device: Device,
  layer: string,
  [inFeatures, outFeatures]: [number, number],
  w: Float32Array,
  { rank, a, b, scale }: AdapterFactors,
): Promise<Float32Array> {
  const held: DeviceBuffer[] = [];
  const upload = (values: Float32Array): DeviceBuffer => {
    const buffer = device.alloc(values.length);
    held.push(buffer);
    device.upload(buffer, values);
    return buffer;
  };
  try {
    const weight = upload(w);
    const adapter = { rank, a: upload(a), b: upload(b), scale, graph: 'separate', dropout: null } as const;
    const { finite } = await device.mergeAdapter(weight, weight, adapter, { inFeatures, outFeatures });
    if (!finite) throw new MergeNotFinite(layer);
    return await valuesOf(device, { buffer: weight });
  } finally {
    for (const buffer of held) device.release(buffer);
  }
}
