import { cpus } from 'node:os';
import { measureDevice, selectBackend, type Backend } from '@relora/engine';
import { machineMemoryBytes } from '../../machineMemory.js';
import type { DescribeTask, DeviceDescription } from '../messages.js';
import { openBackend } from './backend.js';

/** Backends that can be had on this machine, the one that `auto` takes first, each with its measured speed where it can be. */
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
  return {
    ...measureDevice(backend),
    backend: backend.name,
    isDefault,
    model: backend.cpuModel || (cpus()[0]?.model ?? 'unknown'),
    instructionSet: backend.instructionSet ?? '',
    memoryBytes: machineMemoryBytes(),
  };
}
