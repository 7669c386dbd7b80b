import { cardBytes, cardMemory } from './cardMemory.js';
import { servesPrecision } from './devicePrecisions.js';
import { needsProcessor } from './optimizerCost.js';
import { linearShapes } from './parameters.js';
import { targetModules, type RunSpec } from './runSpec.js';
import type { DeviceSpeed } from './deviceSpeed.js';

/** A card that a job could be put on. */
export interface OfferedCard extends DeviceSpeed {
  memoryBytes: number;
}

/**
 * Operations of a block for one micro-batch below which its launches take longer on a card than a processor computes: some hundred
 * launches of a few microseconds each, beside some 10^11 operations a second. Not measured on a card yet.
 */
const blockOperationsMin = 1e8;

/**
 * What `auto` is for a job, by a fixed rule: a card, where one serves its precision, has the memory for it and has enough to do; else
 * the processor. Nothing of it is timed, since bits depend on the device.
 */
export function resolveAuto(
  spec: RunSpec,
  cards: readonly OfferedCard[],
  jobsPerCard: number,
): 'cuda' | 'native' {
  if (!servesPrecision('cuda', spec.precision) || needsProcessor(spec)) return 'native';
  if (blockOperations(spec) < blockOperationsMin) return 'native';
  const fits = cards.some(
    (card) => cardBytes(cardMemory(spec, card)) <= cardShareBytes(card.memoryBytes, jobsPerCard),
  );
  return fits ? 'cuda' : 'native';
}

/** What contexts of the driver and the fragments of others take of a card. */
const cardReservedBytes = 600 * 2 ** 20;

/** Memory of a card that each of the jobs on it may have. */
export function cardShareBytes(memoryBytes: number, jobsPerCard: number): number {
  return Math.max(0, Math.floor((memoryBytes - cardReservedBytes) / Math.max(1, jobsPerCard)));
}

function blockOperations({ model, batch }: RunSpec): number {
  const shapes = linearShapes(model);
  const weights = targetModules.reduce(
    (sum, name) => sum + shapes[name].inFeatures * shapes[name].outFeatures,
    0,
  );
  return 6 * batch.microBatchSequenceCount * batch.sequenceLength * weights;
}
