import { encodeMarked } from './encodeChat.js';
import type { TextPiece } from './textPieces.js';
import type { CutTokens, Tokenizer } from './tokenizer.js';

/** No cut is made this many characters before the end of a window: text that follows may still change the division into words. */
const marginLength = 1024;
/** Characters of context in a window before the position at which it continues. */
const contextLength = 4096;
/** Number of tokens before a position on which two windows must agree. */
const agreedTokens = 32;
const tokensBeforeRun = 16;
/** The longest word that is kept whole, in characters: without a place to cut, text is cut at this length. */
const windowLengthMax = 8 * 2 ** 20;

/** State of a LongText between two pieces. */
export interface LongTextState {
  /** Text still to be emitted, preceded by its context. */
  window: string;
  /** Length of the context. */
  done: number;
  /** The last tokens of the context, as they were emitted. */
  lastIds: readonly number[];
}

/**
 * Encodes a text that arrives in pieces into the tokens of the whole. It uses overlapping windows: one is emitted up to a position where a
 * word of the tokenizer begins, and the next one begins earlier and must reproduce the tokens before that position. So neither the cuts
 * between pieces nor what a tokenizer puts before a text changes the result.
 */
export class LongText {
  private window = '';
  private done = 0;
  private lastIds: readonly number[] = [];

  /** @param state of another LongText, to continue it */
  constructor(
    private readonly tokenizer: Pick<Tokenizer, 'encode'>,
    private readonly encodeWithCuts: (text: string) => Promise<CutTokens>,
    state?: LongTextState,
  ) {
    if (state !== undefined) ({ window: this.window, done: this.done, lastIds: this.lastIds } = state);
  }

  /** Everything, besides the remaining text, on which the remaining tokens depend. */
  get state(): LongTextState {
    const { window, done, lastIds } = this;
    return { window, done, lastIds };
  }

  /** Returns the tokens that are certain now; with the last piece, all remaining tokens. */
  async push(text: string, isLast: boolean): Promise<ArrayLike<number>> {
    this.window += text;
    const encoded = await this.encodeWithCuts(this.window);
    const { ids, places, counts } = encoded;
    const first = this.firstToken(encoded);
    if (isLast) return first === undefined ? await this.encodeRest(true) : tail(ids, first, ids.length);
    const cut = first === undefined ? -1 : this.lastCut(places);
    if (first === undefined || cut < 0)
      return this.window.length - this.done < windowLengthMax ? [] : await this.encodeRest(false);
    const [place, count] = [places[cut]!, counts[cut]!];
    const emitted = tail(ids, first, count);
    this.keepFrom(place, encoded, count);
    return emitted;
  }

  /** Index of the first token not yet emitted; undefined if no word begins there. */
  private firstToken({ ids, places, counts }: CutTokens): number | undefined {
    if (this.done === 0) return 0;
    const cut = indexOf(places, this.done);
    if (cut < 0) return undefined;
    const count = counts[cut]!;
    const expected = this.lastIds;
    // The tokenizer may have put a space before the first word of a window, so only the tokens right before the position must agree.
    for (let back = 1; back <= Math.min(expected.length, agreedTokens, count - 1); back++)
      if (ids[count - back] !== expected[expected.length - back]) return undefined;
    return count;
  }

  /** The last word start that is far enough from the end of the window, and after the emitted text. */
  private lastCut(places: CutTokens['places']): number {
    let cut = places.length - 1;
    while (cut >= 0 && places[cut]! > this.window.length - marginLength) cut--;
    return cut >= 0 && places[cut]! > this.done ? cut : -1;
  }

  /**
   * Starts the next window at a word well before the position where it continues, and some tokens before any run of equal tokens: the
   * division of such a run depends on where it begins, and a tokenizer may put a space there.
   */
  private keepFrom(place: number, { ids, places, counts }: CutTokens, count: number): void {
    let cut = indexBelow(places, place - contextLength);
    while (cut > 0 && ids[counts[cut]!] === ids[counts[cut]! - 1]) cut--;
    const start = cut > tokensBeforeRun ? places[cut - tokensBeforeRun]! : 0;
    this.lastIds = tail(ids, Math.max(0, count - agreedTokens), count);
    this.window = this.window.slice(start);
    this.done = place - start;
  }

  /** Encodes the rest separately: used for a word longer than the limit, which is cut here. */
  private async encodeRest(isLast: boolean): Promise<ArrayLike<number>> {
    const rest = this.window.slice(this.done);
    const isHighSurrogate = (rest.charCodeAt(rest.length - 1) & 0xfc00) === 0xd800;
    const end = rest.length - (isHighSurrogate && !isLast ? 1 : 0);
    this.window = rest.slice(end);
    this.done = 0;
    this.lastIds = [];
    return await this.tokenizer.encode(rest.slice(0, end));
  }
}

function tail(ids: ArrayLike<number>, from: number, to: number): number[] {
  const part: number[] = [];
  for (let i = from; i < to; i++) part.push(ids[i]!);
  return part;
}

/** Index of a position in a sorted list. */
function indexOf(places: ArrayLike<number>, place: number): number {
  const index = indexBelow(places, place);
  return index >= 0 && places[index] === place ? index : -1;
}

/** Index of the last position that is not greater. */
function indexBelow(places: ArrayLike<number>, place: number): number {
  let [low, high] = [0, places.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (places[middle]! <= place) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The fields of a piece on which its tokens depend. */
export type EncodedPiece = Pick<TextPiece, 'text' | 'endsText' | 'spans'>;

/** Tokens of a piece; for a chat also whether each is to be learned, null if the piece says it for all of them. */
export interface PieceTokens {
  ids: ArrayLike<number>;
  isTrained: Uint8Array | null;
}

/** Encodes pieces in order: whole texts, and the pieces of a longer text into the tokens of the whole. */
export class PieceEncoder {
  private long: LongText | undefined;

  constructor(
    private readonly tokenizer: Tokenizer,
    state: LongTextState | null = null,
  ) {
    const { encodeWithCuts } = tokenizer;
    if (state !== null && encodeWithCuts !== null) this.long = new LongText(tokenizer, encodeWithCuts, state);
  }

  /** Null between two texts. */
  get state(): LongTextState | null {
    return this.long?.state ?? null;
  }

  /** Sequentially: parallelism comes from several encoders, not from several pieces. */
  async encode(pieces: readonly EncodedPiece[]): Promise<PieceTokens[]> {
    const encoded: PieceTokens[] = [];
    for (const { text, endsText, spans } of pieces)
      encoded.push(
        spans === undefined
          ? { ids: await this.encodeOne(text, endsText), isTrained: null }
          : await encodeMarked(this.tokenizer, text, spans),
      );
    return encoded;
  }

  private async encodeOne(text: string, endsText: boolean): Promise<ArrayLike<number>> {
    const { encodeWithCuts } = this.tokenizer;
    if (encodeWithCuts === null || (endsText && this.long === undefined))
      return await this.tokenizer.encode(text);
    this.long ??= new LongText(this.tokenizer, encodeWithCuts);
    const ids = await this.long.push(text, endsText);
    if (endsText) this.long = undefined;
    return ids;
  }
}
