import { EngineError } from '../engineError.js';
import { servesHead } from '../plan/devicePrecisions.js';
import type { HeadPrecision } from '../plan/words.js';

/**
 * Why a device is not available or cannot continue. Each reason ends an attempt, or a start, and has its own remedy; the job resumes. Not
 * found: it does not exist on this machine. Lost: it stopped answering, was reset or fell off the bus.
 */
export type DeviceFaultReason =
  | 'DEVICE_NOT_FOUND'
  | 'DEVICE_LIBRARY_MISSING'
  | 'DEVICE_DRIVER_TOO_OLD'
  | 'DEVICE_TOO_OLD'
  | 'DEVICE_PRECISION_UNKNOWN'
  | 'DEVICE_OUT_OF_MEMORY'
  | 'DEVICE_LOST';

/** A fault of the device, not of the job: the message says what was expected, what was found and what to do. */
export class DeviceFault extends EngineError {
  constructor(
    override readonly reason: DeviceFaultReason,
    message: string,
    options?: ErrorOptions,
  ) {
    super(reason, message, options);
  }
}

/** Refuses a head in another precision on a device that has only its own. */
export function requireSameHead(
  device: Parameters<typeof servesHead>[0],
  { precision }: { precision: HeadPrecision },
): void {
  if (!servesHead(device, precision))
    throw new DeviceFault(
      'DEVICE_PRECISION_UNKNOWN',
      `The device ${device} has no head in ${precision}: ask for same`,
    );
}
