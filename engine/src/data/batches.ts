import { DataError } from './dataErrors.js';
import { permutation } from './permutation.js';
import { sequencesInPass } from '../plan/dataPass.js';
import type { TokenSplit } from './tokenSplit.js';

export interface Batch {
  /** [count * sequenceLength], sequence by sequence. */
  inputs: Int32Array;
  /** The token after each input; -1 if it is not to be learned. */
  targets: Int32Array;
}

/** A batch with the positions of its documents. */
export interface DocumentBatch extends Batch {
  /**
   * Where, within its sequence, the document of each input begins: at the last token, up to this input, that ended the previous document;
   * an end-of-text token precedes each text, as in generation. A sequence begins with the rest of a document, at 0.
   */
  documents: Int32Array;
}

export interface TrainingBatch extends DocumentBatch {
  /** Complete passes over all sequences before the first of this batch. */
  epoch: number;
}

/** Source of a run's sequences, by their number in the run. */
export interface BatchSource {
  read(firstSequence: number, count: number): Promise<DocumentBatch>;
}

/** A source that knows where its sequences come from. */
export interface PlacedSource extends BatchSource {
  /** The index of a sequence's data set, and the position of its first input in the training part. */
  placeOf(sequence: number): { part: number; position: number };
}

export interface BatchOptions {
  sequenceLength: number;
  seed: number;
  /** See StreamVersions. */
  cut: number;
}

/** Ranges of a training part that are not trained on, and the token that the model sees instead: the end of a text. */
export interface OmittedTokens {
  /** Sorted and disjoint. */
  ranges: readonly (readonly [start: number, end: number])[];
  endOfTextId: number;
}

export function newBatch(count: number, sequenceLength: number): DocumentBatch {
  const length = count * sequenceLength;
  return {
    inputs: new Int32Array(length),
    targets: new Int32Array(length),
    documents: new Int32Array(length),
  };
}

/**
 * The order of training sequences, as a pure function of their number: the training part is cut into sequences that share one token with
 * the next, and each pass takes them in a new seeded order. Resuming needs no stored state.
 *
 * Tokens that do not fill a sequence are left out of a pass. With cut 1 these are always the last ones; with cut 2 the next pass begins
 * with them, and wraps around at the end to the first token, so that no token is left out twice in a row.
 */
export class Batches implements PlacedSource {
  readonly sequencesPerEpoch: number;
  /** Tokens of the sequence being read. */
  private readonly tokens: Int32Array;
  /** Which of them end a document. */
  private readonly ends: Uint8Array;
  private order: { epoch: number; at(index: number): number } | undefined;

  /** Throws DataError DATASET_TOO_SHORT if there is not one whole sequence. */
  constructor(
    private readonly split: TokenSplit,
    /** `part`: its index in a mixture; `endOfTextId`: the token that ends a document, for shards without separate marks. */
    private readonly options: BatchOptions & {
      endOfTextId: number;
      part?: number;
      omitted?: OmittedTokens | undefined;
    },
  ) {
    const { sequenceLength } = options;
    this.tokens = new Int32Array(sequenceLength + 1);
    this.ends = new Uint8Array(sequenceLength + 1);
    this.sequencesPerEpoch = sequencesInPass(split.tokenCount, sequenceLength);
    if (this.sequencesPerEpoch < 1) {
      throw new DataError('DATASET_TOO_SHORT', { tokenCount: split.tokenCount, sequenceLength });
    }
  }

  /** Sequences `firstSequence` … `firstSequence + count - 1` of the run. */
  take(firstSequence: number, count: number): TrainingBatch {
    const batch = newBatch(count, this.options.sequenceLength);
    for (let i = 0; i < count; i++) this.put(firstSequence + i, batch, i);
    return { ...batch, epoch: Math.floor(firstSequence / this.sequencesPerEpoch) };
  }

  read(firstSequence: number, count: number): Promise<TrainingBatch> {
    return Promise.resolve(this.take(firstSequence, count));
  }

  /** Writes the sequence with this number to a row of a batch. */
  put(index: number, { inputs, targets, documents }: DocumentBatch, place: number): void {
    const { split, tokens, ends } = this;
    const { sequenceLength, endOfTextId, omitted } = this.options;
    const position = this.positionOf(index);
    const untilEnd = Math.min(tokens.length, split.tokenCount - position);
    const [before, after] = [tokens.subarray(0, untilEnd), tokens.subarray(untilEnd)];
    split.fill(before, position);
    if (after.length > 0) split.fill(after, 0);
    split.markEnds(position, before, endOfTextId, ends);
    if (after.length > 0) split.markEnds(0, after, endOfTextId, ends.subarray(untilEnd));
    if (omitted !== undefined) {
      this.passOver(omitted, position, tokens, omitted.endOfTextId);
      this.passOver(omitted, position, ends, 1);
    }
    inputs.set(tokens.subarray(0, -1), place * sequenceLength);
    const begins = documents.subarray(place * sequenceLength, (place + 1) * sequenceLength);
    for (let at = 0, begin = 0; at < sequenceLength; at++) begins[at] = begin = ends[at] === 1 ? at : begin;
    split.mask(position, before);
    if (after.length > 0) split.mask(0, after);
    if (omitted !== undefined) this.passOver(omitted, position, tokens, -1);
    targets.set(tokens.subarray(1), place * sequenceLength);
  }

  /** Overwrites the omitted ranges within the sequence at a position, which may wrap around to the first token. */
  private passOver(
    { ranges }: OmittedTokens,
    position: number,
    values: Int32Array | Uint8Array,
    value: number,
  ): void {
    const { length } = values;
    for (const [start, end] of ranges)
      for (const at of [start - position, start + this.split.tokenCount - position])
        values.fill(
          value,
          Math.max(0, Math.min(length, at)),
          Math.max(0, Math.min(length, at + end - start)),
        );
  }

  placeOf(sequence: number): { part: number; position: number } {
    return { part: this.options.part ?? 0, position: this.positionOf(sequence) };
  }

  private positionOf(sequence: number): number {
    const { sequenceLength, cut } = this.options;
    const epoch = Math.floor(sequence / this.sequencesPerEpoch);
    const begin = cut === 1 ? 0 : epoch * this.sequencesPerEpoch;
    return ((begin + this.orderOf(sequence)) * sequenceLength) % this.split.tokenCount;
  }

  /** Index of a sequence in the order of its pass. */
  private orderOf(sequence: number): number {
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
