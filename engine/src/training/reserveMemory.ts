import type { Device } from '../device/device.js';
import { DeviceFault } from '../device/deviceFaults.js';
import { cardBytes, cardMemory } from '../plan/cardMemory.js';
import { unmeasured } from '../plan/deviceSpeed.js';
import { whatWouldFit } from '../plan/memoryFit.js';
import type { RunSpec } from '../plan/runSpec.js';

/** Reserve for fragmentation: buffers of many sizes do not fill an allocation completely. */
const spareOf = (needed: number): number => Math.max(2 ** 26, 0.005 * needed);

/**
 * Allocates the planned memory of a run on a card before its first step, since others may use the card too. A run that does not fit is
 * refused here; the message has the figures and what would fit.
 */
export function reserveMemory(spec: RunSpec, device: Device): void {
  if (device.description.name !== 'cuda') return;
  const speed = unmeasured(device.description);
  const peakOf = (candidate: RunSpec) => cardBytes(cardMemory(candidate, speed));
  const needed = peakOf(spec);
  const lacking = device.reserve(Math.ceil(needed + spareOf(needed)));
  // A run is not refused for lack of the reserve.
  const free = lacking === null ? null : device.reserve(needed);
  if (free === null) return;
  throw new DeviceFault(
    'DEVICE_OUT_OF_MEMORY',
    `The run needs ${gib(needed)} of the card's memory, of which ${gib(free)} are free: ` +
      whatWouldFit(spec, peakOf, free, 'cuda'),
  );
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
