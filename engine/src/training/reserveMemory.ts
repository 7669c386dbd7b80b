import type { Device } from '../device/device.js';
import { DeviceFault } from '../device/deviceFaults.js';
import { cardBytes, cardMemory } from '../plan/cardMemory.js';
import { unmeasured } from '../plan/deviceSpeed.js';
import { whatWouldFit } from '../plan/memoryFit.js';
import type { RunSpec } from '../plan/runSpec.js';

/** What a plan may lack: pieces of many sizes do not fill an allocation to its end. */
const spareOf = (needed: number): number => Math.max(2 ** 26, 0.005 * needed);

/**
 * The memory plan of a run on a card: what its steps will need is taken before the first of them, from a card that others may use
 * too. A run that does not fit is refused here, with figures and what would fit.
 */
export function reserveMemory(spec: RunSpec, device: Device): void {
  if (device.description.name !== 'cuda') return;
  const speed = unmeasured(device.description);
  const peakOf = (candidate: RunSpec) => cardBytes(cardMemory(candidate, speed));
  const needed = peakOf(spec);
  const lacking = device.reserve(Math.ceil(needed + spareOf(needed)));
  // The spare is not worth a refusal.
  const free = lacking === null ? null : device.reserve(needed);
  if (free === null) return;
  throw new DeviceFault(
    'DEVICE_OUT_OF_MEMORY',
    `The run needs ${gib(needed)} of the card's memory, of which ${gib(free)} are free: ` +
      whatWouldFit(spec, peakOf, free, 'cuda'),
  );
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
