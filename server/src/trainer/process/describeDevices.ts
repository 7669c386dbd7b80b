import { cpus } from 'node:os';
import { selectBackend, type Backend } from '@relora/engine';
import { machineMemoryBytes } from '../../machineMemory.js';
import type { DescribeTask, DeviceDescription } from '../messages.js';
import { openBackend } from './backend.js';

/**
 * The best of several short windows: what the machine does besides, trainers above all, can only make one slower. Together
 * they are long enough for the processor to reach the clock it keeps under load.
 */
const windowCount = 6;
const windowMs = 30;

/** Backends that can be had on this machine, the one that `auto` takes first, each with its measured peak where it can be. */
export async function describeDevices({ device }: DescribeTask): Promise<DeviceDescription[]> {
  const chosen = await openBackend(device, 'auto');
  const devices = [describe(chosen, true)];
  for (const name of ['native', 'tensorflow', 'reference'] as const) {
    if (name === chosen.name) continue;
    // What is not installed or does not fit this machine is not a device.
    const backend = await selectBackend({ device: name, precision: 'auto' }).catch(() => undefined);
    if (backend !== undefined) devices.push(describe(backend, false));
  }
  return devices;
}

function describe(backend: Backend, isDefault: boolean): DeviceDescription {
  const peak = (precision: 'float32' | 'bfloat16') =>
    Math.max(
      ...Array.from({ length: windowCount }, () => backend.native?.measurePeak(precision, windowMs) ?? 0),
    ) * 1e9;
  return {
    backend: backend.name,
    isDefault,
    model: backend.cpuModel || (cpus()[0]?.model ?? 'unknown'),
    instructionSet: backend.instructionSet ?? '',
    threadCount: backend.threadCount,
    memoryBytes: machineMemoryBytes(),
    float32Flops: peak('float32'),
    bfloat16Flops: peak('bfloat16'),
    autoPrecision: backend.precision,
  };
}
