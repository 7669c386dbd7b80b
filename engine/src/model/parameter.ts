import type { Device, DeviceBuffer } from '../device/device.js';

/**
 * The role of a weight in ReLoRA. `shared` (embedding, norms, head) is trained in every phase; `base` is trained in full-rank phases and
 * frozen under adapters; `adapterA`, `adapterB` and `adapterScale` exist only in the adapter phase.
 */
export type ParameterRole = 'shared' | 'base' | 'adapterA' | 'adapterB' | 'adapterScale';

/** One named weight. Names are Hugging Face's, adapters are `<layer>.lora_A`, `<layer>.lora_B`, `<layer>.lora_scale`. */
export interface Parameter {
  readonly name: string;
  readonly role: ParameterRole;
  /** Base weights are [in, out], A is [in, rank], B is [rank, out], embedding and head are [vocabulary, hidden]; [] for a scalar. */
  readonly shape: readonly number[];
  /** Float32. */
  readonly buffer: DeviceBuffer;
  /** Incremented with every change of the values, so that derived data can be recognized as stale. */
  version: number;
}

export function makeParameter(
  device: Device,
  name: string,
  role: ParameterRole,
  values: Float32Array,
  shape: readonly number[],
): Parameter {
  const buffer = device.alloc(values.length);
  device.upload(buffer, values);
  return { name, role, shape, buffer, version: 0 };
}

/** Overwrites the values. */
export function assign(device: Device, parameter: Parameter, values: Float32Array): void {
  device.upload(parameter.buffer, values);
  parameter.version++;
}

/** A copy of the values. */
export async function valuesOf(device: Device, { buffer }: Pick<Parameter, 'buffer'>): Promise<Float32Array> {
  return (await device.download(buffer)) as Float32Array;
}
