import { cpus } from 'node:os';
import { openDevice, type Device } from '@relora/engine';
import { machineMemoryBytes } from '../../machineMemory.js';
import type { DescribeTask, DeviceDescription } from '../messages.js';
import { deviceFor } from './device.js';

/** Devices that can be had on this machine, the one that `auto` takes first, each with its measured speed where it can be. */
export async function describeDevices({ device }: DescribeTask): Promise<DeviceDescription[]> {
  const chosen = await deviceFor(device, 'auto');
  const devices = [await describe(chosen, true)];
  for (const name of ['native', 'tensorflow', 'reference'] as const) {
    if (name === chosen.description.name) continue;
    // What is not installed or does not fit this machine is not a device.
    const found = await openDevice({ device: name, precision: 'auto' }).catch(() => undefined);
    if (found !== undefined) devices.push(await describe(found, false));
  }
  return devices;
}

/** Measures the device, and closes it. */
async function describe(device: Device, isDefault: boolean): Promise<DeviceDescription> {
  const { name, model, instructionSet } = device.description;
  const speed = await device.measure();
  device.close();
  return {
    ...speed,
    backend: name,
    isDefault,
    model: model || (cpus()[0]?.model ?? 'unknown'),
    instructionSet: instructionSet ?? '',
    memoryBytes: machineMemoryBytes(),
  };
}
