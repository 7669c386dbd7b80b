import { existsSync } from 'node:fs';
import { DeviceFault, openDevice, unmeasured, type Device } from '@relora/engine';
import { findNativeAddon } from '@relora/engine/binaries';
import { findDriver, findLibraries, findNccl, listCards } from '@relora/engine/cuda';
import { machineMemoryBytes } from '../../machineMemory.js';
import { lockCard } from '../cardLock.js';
import type { DeviceDescription } from '../../jobs/jobDevices.js';
import type { DescribeTask, DeviceSettings, FoundDevices } from '../messages.js';
import { deviceFor } from './device.js';

/** The available devices of this machine, the one that `auto` takes first, with measured speeds if possible. */
export async function describeDevices({ device, seeksNccl, isTrial }: DescribeTask): Promise<FoundDevices> {
  const found: FoundDevices = {
    ...{ native: findNativeAddon().origin, devices: [], problems: [], libraries: [], nccl: null },
  };
  await describeCards(device, found, { seeksNccl, isTrial });
  if (isTrial) return found;
  // Throws if the settings force instructions that do not exist.
  found.devices.push(await describe(await deviceFor({ ...device, device: 'native' }, 'auto')));
  for (const backend of ['tensorflow', 'reference'] as const) {
    try {
      found.devices.push(await describe(await openDevice({ device: backend, precision: 'auto' })));
    } catch (error) {
      // A backend that is not installed or does not fit this machine is not a device.
      found.problems.push(problemOf(backend, error));
    }
  }
  const isChosen = ({ backend }: DeviceDescription) => device.device === 'auto' || backend === device.device;
  const first = found.devices.find(isChosen);
  if (first !== undefined) first.isDefault = true;
  found.devices.sort((one, other) => Number(other.isDefault) - Number(one.isDefault));
  return found;
}

/** One device per card. */
async function describeCards(
  device: DeviceSettings,
  found: FoundDevices,
  { seeksNccl, isTrial }: Pick<DescribeTask, 'seeksNccl' | 'isTrial'>,
): Promise<void> {
  const { devices, problems } = found;
  const folder = device.card.libraryFolder;
  const note = (error: unknown) => problems.push(problemOf('cuda', error));
  let cards: ReturnType<typeof listCards>['cards'];
  try {
    if (folder !== null) found.libraries = filesOf(folder);
    ({ cards } = listCards(findDriver(folder)));
    found.libraries = filesOf(folder);
    if (seeksNccl && cards.length > 1) found.nccl = findNccl(folder);
  } catch (error) {
    return void note(error);
  }
  for (const { uuid, memoryBytes, capability } of cards) {
    try {
      const card = await deviceFor(
        { ...device, device: 'cuda', card: { ...device.card, uuid } },
        'auto',
        !isTrial,
      );
      const described = await describe(card, uuid);
      devices.push({ ...described, memoryBytes, uuid, computeCapability: (capability / 10).toFixed(1) });
    } catch (error) {
      note(error);
    }
  }
}

function filesOf(folder: string | null): string[] {
  const { compilers, products, collectives } = findLibraries({ folder });
  return [findDriver(folder), ...compilers, ...products, ...collectives].filter((path) => existsSync(path));
}

function problemOf(backend: string, error: unknown): FoundDevices['problems'][number] {
  const reason = error instanceof DeviceFault ? error.reason : 'DEVICE_NOT_FOUND';
  return { backend, reason, message: (error as Error).message };
}

/** Measures the device, unless another server uses it, and closes it. */
async function describe(device: Device, uuid = ''): Promise<DeviceDescription> {
  const { model, instructionSet, isOnUnknownCard = false } = device.description;
  const unlock = uuid === '' ? () => {} : await lockWhereAllowed(uuid);
  const speed = unlock === null ? unmeasured(device.description) : await device.measure();
  unlock?.();
  device.close();
  return {
    ...speed,
    isDefault: false,
    model,
    instructionSet: instructionSet ?? '',
    memoryBytes: isOnUnknownCard ? 0 : machineMemoryBytes(),
    ...{ uuid, computeCapability: '' },
  };
}

/** A confined child cannot create sockets, so it cannot check whether another server uses the card, and measures anyway. */
async function lockWhereAllowed(uuid: string): ReturnType<typeof lockCard> {
  try {
    return await lockCard(uuid);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error;
    return () => {};
  }
}
