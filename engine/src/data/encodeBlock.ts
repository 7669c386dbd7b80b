import { PieceEncoder, type EncodedPiece, type LongTextState } from './longText.js';
import type { Tokenizer } from './tokenizer.js';

/** Consecutive pieces, some mebibytes of text: what one thread encodes at a time. */
export interface TextBlock {
  pieces: EncodedPiece[];
  /**
   * What precedes the block in the text that its first piece continues: either the end of that text (`lead`), if the state of its encoder
   * is not known yet, or that state. Null if the block begins with a new text.
   */
  before: { lead: string } | { state: LongTextState } | null;
}

export interface EncodedBlock {
  /** Tokens of all pieces, one after another. */
  tokens: Uint32Array<ArrayBuffer>;
  /** Number of tokens of each piece. */
  counts: Uint32Array<ArrayBuffer>;
  /** Whether each token is to be learned; null if the pieces say that. */
  isTrained: Uint8Array | null;
  /** State of the encoder before the block, as far as it was known, and after it; null between two texts. */
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
  // A data set with chats contains nothing else: either all pieces are marked or none.
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
 * Whether a block that was encoded with only a lead has the same tokens as after the whole preceding text: that is so if its encoder
 * started in the state in which the previous block's encoder ended.
 */
export function follows(block: EncodedBlock, before: LongTextState | null): boolean {
  return JSON.stringify(block.before) === JSON.stringify(before);
}
