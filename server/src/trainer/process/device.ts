import { loadNativeAddon, openDevice, type Device, type InstructionSet } from '@relora/engine';
import type { Precision } from '@relora/engine/plan';
import type { ServerFailure } from '../../jobs/jobFailures.js';
import type { DeviceSettings } from '../messages.js';

/** RELORA_INSTRUCTION_SET forces instructions that the processor does not have. */
class InstructionSetMissing extends Error {
  override name = 'InstructionSetMissing';
  readonly reason = 'INSTRUCTION_SET_MISSING' satisfies ServerFailure;
}

/** The device that the settings ask for. */
export async function deviceFor(
  { device, instructionSet, threads, card }: DeviceSettings,
  precision: Precision,
  isCacheWritable = false,
): Promise<Device> {
  if (instructionSet !== 'auto') {
    const { cpuModel, instructionSets } = loadNativeAddon().describe();
    if (!instructionSets.some((present) => present === instructionSet))
      throw new InstructionSetMissing(
        `RELORA_INSTRUCTION_SET must be auto or one that the processor (${cpuModel}) has, ${instructionSets.join(', ')}, not ${instructionSet}`,
      );
  }
  return await openDevice({
    device,
    precision,
    card: { ...card, cache: { folder: card.cacheFolder, isWritable: isCacheWritable } },
    ...(instructionSet === 'auto' ? {} : { instructionSet: instructionSet as InstructionSet }),
    ...(threads === 0 ? {} : { threads }),
  });
}
