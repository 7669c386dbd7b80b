import type { BaseKind } from './packedBytes.js';
import type { DeviceChoice, RunSpec } from './runSpec.js';

/** What a device can do, as the server measured it at its start. */
export interface DeviceSpeed {
  /** Each has a cost model of its own. */
  backend: Exclude<DeviceChoice, 'auto'>;
  /** Of native products, or the architecture of a card; null elsewhere. */
  instructionSet: string | null;
  threadCount: number;
  /** Arithmetic that `auto` takes. */
  autoPrecision: 'float32' | 'bfloat16';
  /** Peaks of products, operations a second; 0: not known. */
  float32Flops: number;
  bfloat16Flops: number;
  int8Flops: number;
  /** Bytes a second that go to and from memory; 0: not known. */
  memoryBytesPerSecond: number;
}

/** What is known of a device whose speed was not measured. */
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

/** A job's precision on a device: of what is trained, and of its frozen base. */
export interface Arithmetic {
  precision: 'float32' | 'bfloat16';
  basePrecision: BaseKind;
}

/** A quantized base leaves what is trained as it is with `auto`. */
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

/** Whether the halves of blocks are kernels; else they are computed op by op, which keeps more. */
export function isFused({ backend }: Pick<DeviceSpeed, 'backend'>): boolean {
  return backend === 'native' || backend === 'cuda';
}

/** Whether the native halves sum apart, and keep float32: native/layers/apart_sums.h. */
export function isApart({ adapter }: Pick<RunSpec, 'adapter'>): boolean {
  return adapter !== null && (adapter.dropout > 0 || adapter.trainableScale);
}
