import { Random } from '../random.js';
import { sequencesInPass } from './dataPass.js';

/** A data set of a mixture. */
export interface MixturePart {
  /** Resource name, `datasets/{id}`. */
  dataset: string;
  /** Its share of all sequences is this over the sum of all weights; 0: evaluated alone. */
  weight: number;
}

/** Tokens of a training part that a run passes over. */
export interface OmittedDocument {
  /** Resource name of the data set. */
  dataset: string;
  firstToken: number;
  tokenCount: number;
}

/** Names of all data sets of a specification, in order. */
export function datasetNames({
  dataset,
  mixture,
}: {
  dataset: string;
  mixture: readonly { dataset: string }[];
}): string[] {
  return mixture.length > 0 ? mixture.map((part) => part.dataset) : [dataset];
}

/** Names of all data sets that a run of a specification reads: those that it trains on, in order, then others that it is scored on. */
export function readDatasetNames(
  spec: Parameters<typeof datasetNames>[0] & { evaluations: readonly { dataset: string }[] },
): string[] {
  const scored = spec.evaluations.map(({ dataset }) => dataset).filter((name) => name !== '');
  return [...new Set([...datasetNames(spec), ...scored])];
}

/** Where a sequence of the run comes from. */
export interface PlacedSequence {
  /** Index of the data set. */
  part: number;
  /** How many sequences the run has taken from that data set before. */
  index: number;
}

/** Weights become whole numbers out of this: so that counts are exact, however long a run is. */
const scale = 1_000_000;

/**
 * The order in which a run takes sequences from several data sets: a pure function of seed and weights, so nothing has to be kept
 * to resume anywhere, and micro-batches do not matter. Any number of sequences from the start on has as many of each data set as its
 * weight says, but for a few.
 *
 * The first data set takes its share of all sequences, evenly spread; the second its share of what is left; and so on. Counts that
 * are rounded each by itself would not add up, and drawing at random would make the loss of a step depend on luck.
 */
export class MixtureOrder {
  /** Of the data sets that take part, each with the weight of all from it on. */
  private readonly levels: { part: number; weight: number; rest: number; offset: number }[] = [];

  constructor(
    private readonly weights: readonly number[],
    seed: number,
  ) {
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const random = Random.forStream(seed, 'mixture');
    let rest = 0;
    for (let part = weights.length - 1; part >= 0; part--) {
      if (weights[part] === 0) continue;
      const weight = Math.max(1, Math.round((weights[part]! / sum) * scale));
      rest += weight;
      this.levels.unshift({ part, weight, rest, offset: random.uint32() % rest });
    }
  }

  /** Of the run's sequence with this number. */
  placeOf(sequence: number): PlacedSequence {
    let left = sequence;
    for (const level of this.levels) {
      const index = taken(left, level);
      if (taken(left + 1, level) > index) return { part: level.part, index };
      left -= index;
    }
    throw new RangeError('No data set of the mixture has a weight');
  }

  /** Of the first `count` sequences of the run how many are of each data set. */
  countsIn(count: number): number[] {
    const counts = this.weights.map(() => 0);
    let left = count;
    for (const level of this.levels) {
      const part = taken(left, level);
      counts[level.part] = part;
      left -= part;
    }
    return counts;
  }
}

/** How many of the first `count` sequences a level takes; in halves, so that no product is beyond what a double counts. */
function taken(
  count: number,
  { weight, rest, offset }: { weight: number; rest: number; offset: number },
): number {
  const whole = Math.floor(count / rest);
  return whole * weight + Math.floor(((count - whole * rest) * weight + offset) / rest);
}

/** How often a run of so many sequences reads the training part of each data set. */
export function passesOf(
  parts: readonly { weight: number; tokenCount: number }[],
  seed: number,
  sequenceCount: number,
  sequenceLength: number,
): number[] {
  const weights = parts.map(({ weight }) => weight);
  const counts =
    parts.length === 1 ? [sequenceCount] : new MixtureOrder(weights, seed).countsIn(sequenceCount);
  return parts.map(({ tokenCount }, part) => {
    const inPass = sequencesInPass(tokenCount, sequenceLength);
    return inPass === 0 ? 0 : counts[part]! / inPass;
  });
}
