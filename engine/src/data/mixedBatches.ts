import { MixtureOrder } from '../plan/mixture.js';
import {
  Batches,
  newBatch,
  type DocumentBatch,
  type BatchOptions,
  type OmittedTokens,
  type PlacedSource,
} from './batches.js';
import type { TokenSplit } from './tokenSplit.js';

/** The training part of a data set with its weight. */
export interface WeightedSplit {
  weight: number;
  train: TokenSplit;
  endOfTextId: number;
  omitted?: OmittedTokens | undefined;
}

/** The sequences of one data set or of a mixture; throws DataError DATASET_TOO_SHORT for a part without one whole sequence. */
export function mixedBatches(
  parts: readonly WeightedSplit[],
  options: BatchOptions,
): PlacedSource & { take(firstSequence: number, count: number): DocumentBatch } {
  return parts.length === 1 ? batchesOf(parts[0]!, options) : new MixedBatches(parts, options);
}

/** The sequences of several data sets in the order of their mixture. */
export class MixedBatches implements PlacedSource {
  private readonly order: MixtureOrder;
  /** Null for a data set that is only evaluated. */
  private readonly batches: (Batches | null)[];

  constructor(
    parts: readonly WeightedSplit[],
    private readonly options: BatchOptions,
  ) {
    const weights = parts.map(({ weight }) => weight);
    this.order = new MixtureOrder(weights, options.seed);
    this.batches = parts.map((each, part) =>
      each.weight === 0 ? null : batchesOf(each, { ...options, part }),
    );
  }

  placeOf(sequence: number): { part: number; position: number } {
    const { part, index } = this.order.placeOf(sequence);
    return { part, position: this.batches[part]!.placeOf(index).position };
  }

  take(firstSequence: number, count: number): DocumentBatch {
    const batch = newBatch(count, this.options.sequenceLength);
    for (let i = 0; i < count; i++) {
      const { part, index } = this.order.placeOf(firstSequence + i);
      this.batches[part]!.put(index, batch, i);
    }
    return batch;
  }

  read(firstSequence: number, count: number): Promise<DocumentBatch> {
    return Promise.resolve(this.take(firstSequence, count));
  }
}

function batchesOf(
  { train, endOfTextId, omitted }: WeightedSplit,
  options: BatchOptions & { part?: number },
): Batches {
  return new Batches(train, { ...options, endOfTextId, omitted });
}
