import type { CutTokens, Tokenizer } from './tokenizer.js';

export type Span = readonly [start: number, end: number];

/** Tokens of a text, and whether each is to be learned. */
export interface MarkedTokens {
  ids: ArrayLike<number>;
  isTrained: Uint8Array;
}

/**
 * Encodes a whole text and marks the tokens to be learned: those that stand for some part of the spans. A word of the tokenizer that begins
 * before a span and ends within it counts, since the model has to generate it.
 */
export async function encodeMarked(
  tokenizer: Tokenizer,
  text: string,
  spans: readonly Span[],
): Promise<MarkedTokens> {
  if (tokenizer.encodeWithCuts === null) return await markBytes(tokenizer, text, spans);
  const encoded = await tokenizer.encodeWithCuts(text);
  return { ids: encoded.ids, isTrained: markWords(encoded, text.length, spans) };
}

function markWords({ ids, places, counts }: CutTokens, length: number, spans: readonly Span[]): Uint8Array {
  const isTrained = new Uint8Array(ids.length);
  let next = 0;
  for (let word = 0; word < places.length; word++) {
    const [start, end] = [places[word]!, places[word + 1] ?? length];
    while (next < spans.length && spans[next]![1] <= start) next++;
    const span = spans[next];
    if (span === undefined) break;
    // Tokens before the first word stand for no text.
    if (span[0] < end) isTrained.fill(1, counts[word]!, counts[word + 1] ?? ids.length);
  }
  return isTrained;
}

/** One token per byte. */
async function markBytes(tokenizer: Tokenizer, text: string, spans: readonly Span[]): Promise<MarkedTokens> {
  const ids = await tokenizer.encode(text);
  const isTrained = new Uint8Array(ids.length);
  let [units, bytes] = [0, 0];
  const bytesAt = (place: number): number => {
    bytes += Buffer.byteLength(text.slice(units, place));
    units = place;
    return bytes;
  };
  for (const [start, end] of spans) isTrained.fill(1, bytesAt(start), bytesAt(end));
  return { ids, isTrained };
}
