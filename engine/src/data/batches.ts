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

/** A batch that knows its documents. */
export interface DocumentBatch extends Batch {
  /**
   * Where in its sequence the document of each input begins: at the last token up to it that ended the one before, which stands before a
   * text as it does where text is written; what a sequence begins with is the rest of a document.
   */
  documents: Int32Array;
}

export interface TrainingBatch extends DocumentBatch {
  /** How often all sequences were read before the first of this batch. */
  epoch: number;
}

/** What gives a run its sequences, by their number in the run. */
export interface BatchSource {
  read(firstSequence: number, count: number): Promise<DocumentBatch>;
}

/** What knows where its sequences come from. */
export interface PlacedSource extends BatchSource {
  /** The data set that a sequence is of, by its index, and the place of its first input in the training part. */
  placeOf(sequence: number): { part: number; position: number };
}

export interface BatchOptions {
  sequenceLength: number;
  seed: number;
  /** See StreamVersions. */
  cut: number;
}

/** Places of a training part that are passed over, and what stands there for the model: the end of a text. */
export interface OmittedTokens {
  /** In order and apart. */
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
 * The order of training sequences, as a pure function of their number: the training part is cut into sequences that share
 * one token with the next, and each pass takes them in a new seeded order. Nothing has to be kept to resume anywhere.
 *
 * As many tokens as do not fill a sequence are in none of a pass. With cut 1 they are always the last ones; with cut 2 the next
 * pass begins with them, and what is beyond the end begins again at the first token, so that no token is left out twice in a row.
 */
export class Batches implements PlacedSource {
  readonly sequencesPerEpoch: number;
  /** Of the sequence that is read. */
  private readonly tokens: Int32Array;
  /** Which of them end a document. */
  private readonly ends: Uint8Array;
  private order: { epoch: number; at(index: number): number } | undefined;

  /** Throws DataError DATASET_TOO_SHORT when there is not one whole sequence. */
  constructor(
    private readonly split: TokenSplit,
    /** `part`: its index in a mixture; `endOfTextId`: what ends a document, where its shards do not say it. */
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

  /** Puts the sequence with a number into a place of a batch. */
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

  /** Writes something in place of what is passed over of the sequence at a position, which may continue at the first token. */
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

  /** Its place among the sequences of its pass. */
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
