import { DataError } from './dataErrors.js';
import { permutation } from './permutation.js';
import { sequencesInPass } from '../plan/dataPass.js';
import type { TokenSplit } from './tokenSplit.js';

export interface Batch {
  /** [count * sequenceLength], sequence by sequence. */
  inputs: Int32Array;
  /** The token after each input; -1 where it is not to be learned. */
  targets: Int32Array;
}

export interface TrainingBatch extends Batch {
  /** How often all sequences were read before the first of this batch. */
  epoch: number;
}

/**
 * The order of training sequences, as a pure function of their number: the training part is cut into sequences that share
 * one token with the next, and each pass takes them in a new seeded order. Nothing has to be kept to go on anywhere.
 */
export class Batches {
  readonly sequencesPerEpoch: number;
  private order: { epoch: number; at(index: number): number } | undefined;

  /** Throws DataError DATASET_TOO_SHORT when there is not one whole sequence. */
  constructor(
    private readonly split: TokenSplit,
    private readonly options: { sequenceLength: number; seed: number },
  ) {
    const { sequenceLength } = options;
    this.sequencesPerEpoch = sequencesInPass(split.tokenCount, sequenceLength);
    if (this.sequencesPerEpoch < 1) {
      throw new DataError('DATASET_TOO_SHORT', { tokenCount: split.tokenCount, sequenceLength });
    }
  }

  /** Sequences `firstSequence` … `firstSequence + count - 1` of the run. */
  async read(firstSequence: number, count: number): Promise<TrainingBatch> {
    const { sequenceLength } = this.options;
    const inputs = new Int32Array(count * sequenceLength);
    const targets = new Int32Array(count * sequenceLength);
    for (let i = 0; i < count; i++) {
      const position = this.sequenceAt(firstSequence + i) * sequenceLength;
      const tokens = await this.split.read(position, sequenceLength + 1);
      inputs.set(tokens.subarray(0, sequenceLength), i * sequenceLength);
      const next = tokens.subarray(1);
      await this.split.mask(position + 1, next);
      targets.set(next, i * sequenceLength);
    }
    return { inputs, targets, epoch: Math.floor(firstSequence / this.sequencesPerEpoch) };
  }

  private sequenceAt(sequence: number): number {
    const epoch = Math.floor(sequence / this.sequencesPerEpoch);
    if (this.order?.epoch !== epoch) {
      this.order = { epoch, at: permutation(this.sequencesPerEpoch, this.options.seed, epoch) };
    }
    return this.order.at(sequence % this.sequencesPerEpoch);
  }
}
