import {
  cardBytes,
  cardMemory,
  cardShareBytes,
  estimateRun,
  type DeviceSpeed,
  type PeakOf,
  type RunSpec,
} from '@relora/engine/plan';
import type { Config } from '../config.js';
import { jobShareBytes } from '../machineMemory.js';
import type { DeviceDescription } from '../jobs/jobDevices.js';

/** The memory that decides whether a job fits: that of the machine, or of the card that it runs on. */
export interface DeviceMemory {
  /** Its name in messages. */
  name: 'memory' | "the card's memory";
  peakOf: PeakOf;
  bytesMax: number;
}

type MemorySettings = Pick<Config, 'jobMemoryBytesMax' | 'slots' | 'gpuSlots'>;

export function deviceMemoryOf(
  device: DeviceDescription | undefined,
  speed: DeviceSpeed,
  settings: MemorySettings,
): DeviceMemory {
  if (device?.backend === 'cuda')
    return {
      name: "the card's memory",
      peakOf: (spec) => cardBytes(cardMemory(spec, speed)),
      bytesMax: cardShareBytes(device.memoryBytes, settings.gpuSlots),
    };
  return {
    name: 'memory',
    peakOf: (spec) => estimateRun(spec, speed).peakMemoryBytes,
    bytesMax: machineShareBytes(settings),
  };
}

export function machineShareBytes({ jobMemoryBytesMax, slots }: MemorySettings): number {
  return jobMemoryBytesMax || jobShareBytes(slots);
}

/** Tokens in one micro-batch on a card if the client does not say; fewer leave most of the card idle. */
const cardMicroBatchTokens = 16_384;

/** Sets the micro-batch for a card, if the client left it open: the largest that divides the part of a process and fits. */
export function withCardMicroBatch(spec: RunSpec, { peakOf, bytesMax }: DeviceMemory): RunSpec {
  const { sequenceLength, microBatchSequenceCount } = spec.batch;
  const ownCount = spec.batch.sequenceCount / spec.replicas;
  for (let count = ownCount; count > microBatchSequenceCount; count--) {
    if (ownCount % count !== 0 || count * sequenceLength > cardMicroBatchTokens) continue;
    const larger: RunSpec = { ...spec, batch: { ...spec.batch, microBatchSequenceCount: count } };
    if (peakOf(larger) <= bytesMax) return larger;
  }
  return spec;
}
