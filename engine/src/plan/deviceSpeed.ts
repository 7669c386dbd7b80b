import type { BaseKind } from './packedBytes.js';
import type { DeviceChoice, RunSpec } from './runSpec.js';

/** A device's capabilities, as the server measured them at its start. */
export interface DeviceSpeed {
  /** Each backend has its own cost model. */
  backend: Exclude<DeviceChoice, 'auto'>;
  /** Instruction set of native products, or architecture of a card; null elsewhere. */
  instructionSet: string | null;
  threadCount: number;
  /** Precision that `auto` resolves to. */
  autoPrecision: 'float32' | 'bfloat16';
  /** Rates of products of the size of a layer, operations per second; 0: unknown. */
  float32Flops: number;
  bfloat16Flops: number;
  int8Flops: number;
  /** Memory bandwidth, bytes per second; 0: unknown. */
  memoryBytesPerSecond: number;
}

/**
 * The layer whose products give a processor's rates: one of llama-60m, whose weights the second-level cache does not hold; so few rows that a
 * window takes about a millisecond.
 */
export const measuredProduct = { rows: 64, inFeatures: 512, outFeatures: 1376 } as const;

/** Entry for a device whose speed was not measured. */
export function unmeasured(device: {
  name: DeviceSpeed['backend'];
  instructionSet: string | null;
  threadCount: number;
  precision: DeviceSpeed['autoPrecision'];
}): DeviceSpeed {
  const { name: backend, instructionSet, threadCount, precision: autoPrecision } = device;
  const speeds = { float32Flops: 0, bfloat16Flops: 0, int8Flops: 0, memoryBytesPerSecond: 0 };
  return { backend, instructionSet, threadCount, autoPrecision, ...speeds };
}

/** Precision of a job on a device: of trained weights, and of the frozen base. */
export interface Arithmetic {
  precision: 'float32' | 'bfloat16';
  basePrecision: BaseKind;
}

/** With a quantized base, trained weights have the precision of `auto`. */
export function arithmeticOf(
  { precision: wanted }: Pick<RunSpec, 'precision'>,
  device: Pick<DeviceSpeed, 'autoPrecision'>,
): Arithmetic {
  const precision = wanted === 'float32' || wanted === 'bfloat16' ? wanted : device.autoPrecision;
  const quantized = { int8Base: 'int8', nf4Base: 'nf4', fp8Base: 'fp8' } as const;
  const basePrecision = Object.hasOwn(quantized, wanted)
    ? quantized[wanted as keyof typeof quantized]
    : precision;
  return { precision, basePrecision };
}

/** Whether halves of blocks run as fused kernels; otherwise they are computed op by op, which keeps more memory. */
export function isFused({ backend }: Pick<DeviceSpeed, 'backend'>): boolean {
  return backend === 'native' || backend === 'cuda';
}

/** Whether the native halves sum separately and keep float32: native/layers/apart_sums.h. */
export function isApart({ adapter }: Pick<RunSpec, 'adapter'>): boolean {
  return adapter !== null && (adapter.dropout > 0 || adapter.trainableScale);
}
