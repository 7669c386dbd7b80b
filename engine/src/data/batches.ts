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

/** What gives a run its sequences, by their number in the run. */
export interface BatchSource {
  read(firstSequence: number, count: number): Promise<Batch>;
}

/**
 * The order of training sequences, as a pure function of their number: the training part is cut into sequences that share
 * one token with the next, and each pass takes them in a new seeded order. Nothing has to be kept to resume anywhere.
 *
 * As many tokens as do not fill a sequence are in none of a pass. With cut 1 they are always the last ones; with cut 2 the next
 * pass begins with them, and what is beyond the end begins again at the first token, so that no token is left out twice in a row.
 */
export class Batches implements BatchSource {
  readonly sequencesPerEpoch: number;
  private order: { epoch: number; at(index: number): number } | undefined;

  /** Throws DataError DATASET_TOO_SHORT when there is not one whole sequence. */
  constructor(
    private readonly split: TokenSplit,
    /** `cut`: see StreamVersions; `part`: its index in a mixture. */
    private readonly options: { sequenceLength: number; seed: number; cut: number; part?: number },
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
      const tokens = await this.sequence(firstSequence + i);
      inputs.set(tokens.inputs, i * sequenceLength);
      targets.set(tokens.targets, i * sequenceLength);
    }
    return { inputs, targets, epoch: Math.floor(firstSequence / this.sequencesPerEpoch) };
  }

  /** The sequence with a number. */
  async sequence(index: number): Promise<Batch> {
    const position = this.positionOf(index);
    const { tokenCount } = this.split;
    const length = this.options.sequenceLength + 1;
    const untilEnd = Math.min(length, tokenCount - position);
    const tokens = new Int32Array(length);
    tokens.set(await this.split.read(position, untilEnd));
    tokens.set(await this.split.read(0, length - untilEnd), untilEnd);
    const inputs = tokens.slice(0, -1);
    await this.split.mask(position, tokens.subarray(0, untilEnd));
    await this.split.mask(0, tokens.subarray(untilEnd));
    return { inputs, targets: tokens.subarray(1) };
  }

  private positionOf(sequence: number): number {
    const { sequenceLength, cut } = this.options;
    const epoch = Math.floor(sequence / this.sequencesPerEpoch);
    const begin = cut === 1 ? 0 : epoch * this.sequencesPerEpoch;
    return ((begin + this.placeOf(sequence)) * sequenceLength) % this.split.tokenCount;
  }

  /** Its place among the sequences of its pass. */
  private placeOf(sequence: number): number {
    const epoch = Math.floor(sequence / this.sequencesPerEpoch);
    if (this.order?.epoch !== epoch) {
      this.order = {
        epoch,
        at: permutation(this.sequencesPerEpoch, this.options.seed, epoch, this.options.part),
      };
    }
    return this.order.at(sequence % this.sequencesPerEpoch);
  }
}
