import { Random } from '../random.js';
import { sequencesInPass } from './dataPass.js';

/** A data set of a mixture. */
export interface MixturePart {
  /** Resource name, `datasets/{id}`. */
  dataset: string;
  /** Its share of all sequences is this weight over the sum of all weights; 0: only evaluated. */
  weight: number;
}

/** Tokens of a training part that a run does not train on. */
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

/** Names of all data sets that a run reads: the ones it trains on, in order, then those it is only evaluated on. */
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
  /** Number of sequences that the run took from that data set before this one. */
  index: number;
}

/** Weights are rounded to integer parts of this, so that counts are exact, however long a run is. */
const scale = 1_000_000;

/**
 * The order in which a run takes sequences from several data sets: a pure function of seed and weights, so resuming needs no stored state,
 * and the cut into micro-batches does not matter. Any prefix of the run's sequences has from each data set the number that its weight
 * implies, up to a few.
 *
 * The first data set gets its share of all sequences, evenly spread; the second its share of the remaining ones; and so on. Rounding each
 * count independently would not add up, and random draws would make a step's loss depend on luck.
 */
export class MixtureOrder {
  /** Data sets with a positive weight, in order; `rest` is the sum of weights from this one on. */
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

  /** Where the run's sequence with this number comes from. */
  placeOf(sequence: number): PlacedSequence {
    let left = sequence;
    for (const level of this.levels) {
      const index = taken(left, level);
      if (taken(left + 1, level) > index) return { part: level.part, index };
      left -= index;
    }
    throw new RangeError('No data set of the mixture has a weight');
  }

  /** How many of the run's first `count` sequences come from each data set. */
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

/**
 * How many of the first `count` sequences a level takes; computed in halves, so that no product exceeds what a double represents exactly.
 */
function taken(
  count: number,
  { weight, rest, offset }: { weight: number; rest: number; offset: number },
): number {
  const whole = Math.floor(count / rest);
  return whole * weight + Math.floor(((count - whole * rest) * weight + offset) / rest);
}

/** How many passes over the training part of each data set a run with this many sequences makes. */
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
