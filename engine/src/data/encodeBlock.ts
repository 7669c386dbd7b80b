import { PieceEncoder, type EncodedPiece, type LongTextState } from './longText.js';
import type { Tokenizer } from './tokenizer.js';

/** Pieces that follow each other, some mebibytes of text: what one thread encodes at a time. */
export interface TextBlock {
  pieces: EncodedPiece[];
  /**
   * What is before it of the text that its first piece continues: the end of what was read there, where the state of its encoder is
   * not known yet, or that state. Null where the block begins with a text.
   */
  before: { lead: string } | { state: LongTextState } | null;
}

export interface EncodedBlock {
  /** Of all pieces, one after another. */
  tokens: Uint32Array<ArrayBuffer>;
  /** How many of them are of each piece. */
  counts: Uint32Array<ArrayBuffer>;
  /** Of each token whether it is to be learned; null where its piece says that. */
  isTrained: Uint8Array | null;
  /** State of the encoder before the block, as far as it could be known, and after it; null between two texts. */
  before: LongTextState | null;
  after: LongTextState | null;
}

export async function encodeBlock(
  tokenizer: Tokenizer,
  { pieces, before }: TextBlock,
): Promise<EncodedBlock> {
  const encoder = new PieceEncoder(tokenizer, before !== null && 'state' in before ? before.state : null);
  if (before !== null && 'lead' in before) await encoder.encode([{ text: before.lead, endsText: false }]);
  const stateBefore = encoder.state;
  const encoded = await encoder.encode(pieces);
  const counts = Uint32Array.from(encoded, ({ ids }) => ids.length);
  const tokens = new Uint32Array(counts.reduce((sum, count) => sum + count, 0));
  // Chats are alone in their data set: either all pieces are marked or none.
  const isMarked = encoded.some(({ isTrained }) => isTrained !== null);
  const marks = isMarked ? new Uint8Array(tokens.length) : null;
  let length = 0;
  for (const { ids, isTrained } of encoded) {
    tokens.set(ids, length);
    if (isTrained !== null) marks!.set(isTrained, length);
    length += ids.length;
  }
  return { tokens, counts, isTrained: marks, before: stateBefore, after: encoder.state };
}

/**
 * Whether a block that was encoded with nothing but the end of the text before it has the tokens that it has after all of it: then its
 * encoder stood where the one before it had come to, and depends on nothing else.
 */
export function follows(block: EncodedBlock, before: LongTextState | null): boolean {
  return JSON.stringify(block.before) === JSON.stringify(before);
}
