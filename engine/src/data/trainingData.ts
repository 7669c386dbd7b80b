import { createHash } from 'node:crypto';
import { MixtureOrder, passesOf, type MixturePart } from '../plan/mixture.js';
import type { RunSpec } from '../plan/runSpec.js';
import { Batches, type Batch, type BatchSource } from './batches.js';
import type { Dataset } from './dataset.js';

/** A data set that a run trains on, is evaluated on, or both. */
export interface DataPart extends MixturePart {
  source: Dataset;
}

/** The data sets of a run: one, or those of a mixture in its order. */
export class TrainingData {
  readonly parts: readonly DataPart[];

  constructor(
    private readonly spec: Pick<RunSpec, 'dataset' | 'mixture' | 'seed' | 'batch' | 'streams'>,
    sources: readonly Dataset[],
  ) {
    const named = spec.mixture.length > 0 ? spec.mixture : [{ dataset: spec.dataset, weight: 1 }];
    if (sources.length !== named.length)
      throw new RangeError(`${sources.length} data sets for a mixture of ${named.length}`);
    this.parts = named.map((part, index) => ({ ...part, source: sources[index]! }));
  }

  /** What a run depends on: the SHA-256 of the one manifest, or one over those of all. */
  get sha256(): string {
    const digests = this.parts.map(({ source }) => source.manifestSha256);
    return digests.length === 1
      ? digests[0]!
      : createHash('sha256').update(JSON.stringify(digests)).digest('hex');
  }

  /** Throws DataError DATASET_TOO_SHORT for a part without one whole sequence. */
  batches(): BatchSource {
    const { seed, batch, streams } = this.spec;
    const options = { sequenceLength: batch.sequenceLength, seed, cut: streams.dataCut };
    const [first] = this.parts;
    if (this.parts.length === 1) return new Batches(first!.source.train, options);
    return new MixedBatches(this.parts, options);
  }

  /** How often the training part of each was read when the run has taken so many sequences. */
  epochsAt(sequenceCount: number): number[] {
    const parts = this.parts.map(({ weight, source }) => ({ weight, tokenCount: source.train.tokenCount }));
    return passesOf(parts, this.spec.seed, sequenceCount, this.spec.batch.sequenceLength);
  }
}

/** The sequences of several data sets in the order of their mixture. */
export class MixedBatches implements BatchSource {
  private readonly order: MixtureOrder;
  /** Null for a data set that is evaluated alone. */
  private readonly batches: (Batches | null)[];

  constructor(
    parts: readonly DataPart[],
    private readonly options: { sequenceLength: number; seed: number; cut: number },
  ) {
    const weights = parts.map(({ weight }) => weight);
    this.order = new MixtureOrder(weights, options.seed);
    this.batches = parts.map(({ weight, source }, part) =>
      weight === 0 ? null : new Batches(source.train, { ...options, part }),
    );
  }

  async read(firstSequence: number, count: number): Promise<Batch> {
    const { sequenceLength } = this.options;
    const inputs = new Int32Array(count * sequenceLength);
    const targets = new Int32Array(count * sequenceLength);
    for (let i = 0; i < count; i++) {
      const { part, index } = this.order.placeOf(firstSequence + i);
      const tokens = await this.batches[part]!.sequence(index);
      inputs.set(tokens.inputs, i * sequenceLength);
      targets.set(tokens.targets, i * sequenceLength);
    }
    return { inputs, targets };
  }
}
