import { createHash } from 'node:crypto';
import { passesOf, type MixturePart } from '../plan/mixture.js';
import type { RunSpec } from '../plan/runSpec.js';
import { BatchFeed } from './batchFeed.js';
import type { BatchOptions, OmittedTokens, PlacedSource } from './batches.js';
import type { Dataset } from './dataset.js';
import { mixedBatches } from './mixedBatches.js';

/** A data set that a run trains on, is evaluated on, or both. */
export interface DataPart extends MixturePart {
  source: Dataset;
}

/** The data sets of a run: one, or those of a mixture in its order. */
export class TrainingData {
  readonly parts: readonly DataPart[];

  constructor(
    private readonly spec: Pick<
      RunSpec,
      'dataset' | 'mixture' | 'omittedDocuments' | 'seed' | 'batch' | 'streams'
    >,
    sources: readonly Dataset[],
  ) {
    const named = spec.mixture.length > 0 ? spec.mixture : [{ dataset: spec.dataset, weight: 1 }];
    if (sources.length !== named.length)
      throw new RangeError(`${sources.length} data sets for a mixture of ${named.length}`);
    this.parts = named.map((part, index) => ({ ...part, source: sources[index]! }));
  }

  /** Hash of the data on which a run depends: the SHA-256 of its manifest, or one over those of all data sets. */
  get sha256(): string {
    const digests = this.parts.map(({ source }) => source.manifestSha256);
    return digests.length === 1
      ? digests[0]!
      : createHash('sha256').update(JSON.stringify(digests)).digest('hex');
  }

  /** In the calling thread; throws DataError DATASET_TOO_SHORT for a part without one whole sequence. */
  batches(): PlacedSource {
    const parts = this.parts.map((part) => ({
      ...{ weight: part.weight, train: part.source.train, omitted: this.omittedOf(part) },
      endOfTextId: part.source.tokenizer.endOfTextId,
    }));
    return mixedBatches(parts, this.batchOptions);
  }

  /**
   * In a separate thread.
   * @param checkedPath file that records which shards were verified; null: every shard is verified again
   */
  feed(checkedPath: string | null): BatchFeed {
    this.batches(); // throws errors now instead of at the first batch
    const parts = this.parts.map((part) => {
      const { folder, manifest, tokenizer } = part.source;
      const { tokenBytes, train } = manifest;
      const { endOfTextId } = tokenizer;
      const read = { folder, tokenBytes, train: train.shards, endOfTextId };
      return { ...read, weight: part.weight, omitted: this.omittedOf(part) };
    });
    return new BatchFeed({ parts, options: this.batchOptions, checkedPath });
  }

  /** Omitted ranges of a data set; undefined if there are none. */
  private omittedOf({ dataset, source }: DataPart): OmittedTokens | undefined {
    const ranges = this.spec.omittedDocuments
      .filter((document) => document.dataset === dataset)
      .map(({ firstToken, tokenCount }) => [firstToken, firstToken + tokenCount] as const)
      .sort(([one], [other]) => one - other);
    return ranges.length === 0 ? undefined : { ranges, endOfTextId: source.tokenizer.endOfTextId };
  }

  private get batchOptions(): BatchOptions {
    const { seed, batch, streams } = this.spec;
    return { sequenceLength: batch.sequenceLength, seed, cut: streams.dataCut };
  }

  /** Passes over the training part of each data set after the run has taken this many sequences. */
  epochsAt(sequenceCount: number): number[] {
    const parts = this.parts.map(({ weight, source }) => ({ weight, tokenCount: source.train.tokenCount }));
    return passesOf(parts, this.spec.seed, sequenceCount, this.spec.batch.sequenceLength);
  }
}
