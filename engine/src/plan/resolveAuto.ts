import { cardBytes, cardMemory } from './cardMemory.js';
import { cardServes, servesHead, servesPrecision } from './devicePrecisions.js';
import { linearShapes } from './parameters.js';
import { targetModules, type RunSpec } from './runSpec.js';
import type { DeviceSpeed } from './deviceSpeed.js';

/** A card that a job could be assigned to. */
export interface OfferedCard extends DeviceSpeed {
  memoryBytes: number;
  /** For example 9.0. */
  computeCapability: string;
}

/**
 * Below this number of operations of a block per micro-batch, launches on a card take longer than the CPU's computation: about a hundred
 * launches of a few microseconds each, against about 10^11 operations per second. Not measured on a card yet.
 */
const blockOperationsMin = 1e8;

/**
 * Resolves `auto` for a job by a fixed rule: cards, if they support its precisions, there is one for each of its processes, of one
 * architecture and with enough memory, and the job has enough work; otherwise the CPU. Nothing is timed, since bits depend on the device.
 */
export function resolveAuto(
  spec: RunSpec,
  cards: readonly OfferedCard[],
  jobsPerCard: number,
): 'cuda' | 'native' {
  if (!servesPrecision('cuda', spec.precision) || !servesHead('cuda', spec.headPrecision)) return 'native';
  if (blockOperations(spec) < blockOperationsMin) return 'native';
  const fitting = cards.filter(
    (card) =>
      cardServes(card, spec.precision) &&
      cardBytes(cardMemory(spec, card)) <= cardShareBytes(card.memoryBytes, jobsPerCard),
  );
  return largestKind(fitting).length >= spec.replicas ? 'cuda' : 'native';
}

/** The cards of the architecture that most have; the first of several. Processes of a job on different ones would differ in bits. */
export function largestKind<T extends { instructionSet: string | null }>(cards: readonly T[]): T[] {
  const kinds = [...new Set(cards.map(({ instructionSet }) => instructionSet))];
  const groups = kinds.map((kind) => cards.filter(({ instructionSet }) => instructionSet === kind));
  return groups.sort((one, other) => other.length - one.length)[0] ?? [];
}

/** Card memory reserved for driver contexts and fragmentation by other jobs. */
const cardReservedBytes = 600 * 2 ** 20;

/** Memory of a card available to each of the jobs on it. */
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
