import { selectBackend, type Backend, type InstructionSet } from '@relora/engine';
import type { Precision } from '@relora/engine/plan';
import type { DeviceSettings } from '../messages.js';

/** The backend that the settings ask for. */
export async function openBackend(
  { device, instructionSet, threads }: DeviceSettings,
  precision: Precision,
): Promise<Backend> {
  return await selectBackend({
    device,
    precision,
    ...(instructionSet === 'auto' ? {} : { instructionSet: instructionSet as InstructionSet }),
    ...(threads === 0 ? {} : { threads }),
  });
}
