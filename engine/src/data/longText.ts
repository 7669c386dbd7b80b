import { encodeMarked } from './encodeChat.js';
import type { TextPiece } from './textPieces.js';
import type { CutTokens, Tokenizer } from './tokenizer.js';

/** Characters before the end of a window in which no cut is taken: what follows may still change how they are divided. */
const marginLength = 1024;
/** Characters that a window begins before the place where it continues. */
const contextLength = 4096;
/** Tokens before a place that two windows must agree in. */
const agreedTokens = 32;
const tokensBeforeRun = 16;
/** Without a place to cut so many characters are cut as they stand: the longest word that is kept whole. */
const windowLengthMax = 8 * 2 ** 20;

/** Where a LongText stands between two pieces. */
export interface LongTextState {
  /** What is still to be emitted, with the context before it. */
  window: string;
  /** Length of the context in it. */
  done: number;
  /** The tokens that the context ends with, as they were emitted. */
  lastIds: readonly number[];
}

/**
 * Encodes a text that comes in pieces into the tokens of the whole. Windows of it overlap: one is emitted up to a place where a
 * word of the tokenizer begins, and the next begins before that place, whose tokens it must find again. So neither where
 * the pieces were cut nor what a tokenizer puts before a text changes anything.
 */
export class LongText {
  private window = '';
  private done = 0;
  private lastIds: readonly number[] = [];

  /** @param state where another one was, to continue there */
  constructor(
    private readonly tokenizer: Pick<Tokenizer, 'encode'>,
    private readonly encodeWithCuts: (text: string) => Promise<CutTokens>,
    state?: LongTextState,
  ) {
    if (state !== undefined) ({ window: this.window, done: this.done, lastIds: this.lastIds } = state);
  }

  /** All that the tokens still to come depend on, beside the text still to come. */
  get state(): LongTextState {
    const { window, done, lastIds } = this;
    return { window, done, lastIds };
  }

  /** The tokens that are certain now; all that are left with the last piece. */
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

  /** Index of the first token that was not emitted yet; undefined where no word begins there. */
  private firstToken({ ids, places, counts }: CutTokens): number | undefined {
    if (this.done === 0) return 0;
    const cut = indexOf(places, this.done);
    if (cut < 0) return undefined;
    const count = counts[cut]!;
    const expected = this.lastIds;
    // The first word of a window may have been given a space; what comes right before the place must be the same.
    for (let back = 1; back <= Math.min(expected.length, agreedTokens, count - 1); back++)
      if (ids[count - back] !== expected[expected.length - back]) return undefined;
    return count;
  }

  /** The last place where a word begins far enough from the end, and after what was emitted. */
  private lastCut(places: CutTokens['places']): number {
    let cut = places.length - 1;
    while (cut >= 0 && places[cut]! > this.window.length - marginLength) cut--;
    return cut >= 0 && places[cut]! > this.done ? cut : -1;
  }

  /**
   * Begins the next window where a word begins, well before the place where it continues, and some tokens before a run of one
   * token: how that is divided depends on where it begins, and a tokenizer may put a space there.
   */
  private keepFrom(place: number, { ids, places, counts }: CutTokens, count: number): void {
    let cut = indexBelow(places, place - contextLength);
    while (cut > 0 && ids[counts[cut]!] === ids[counts[cut]! - 1]) cut--;
    const start = cut > tokensBeforeRun ? places[cut - tokensBeforeRun]! : 0;
    this.lastIds = tail(ids, Math.max(0, count - agreedTokens), count);
    this.window = this.window.slice(start);
    this.done = place - start;
  }

  /** All that is left by itself: of a word that is longer than any may be, where it is cut. */
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

/** Of sorted places. */
function indexOf(places: ArrayLike<number>, place: number): number {
  const index = indexBelow(places, place);
  return index >= 0 && places[index] === place ? index : -1;
}

/** Of the last that is not above. */
function indexBelow(places: ArrayLike<number>, place: number): number {
  let [low, high] = [0, places.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (places[middle]! <= place) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** A piece as far as its tokens depend on it. */
export type EncodedPiece = Pick<TextPiece, 'text' | 'endsText' | 'spans'>;

/** Tokens of a piece, and of each of a chat whether it is to be learned; null where the piece says it of all. */
export interface PieceTokens {
  ids: ArrayLike<number>;
  isTrained: Uint8Array | null;
}

/** Encodes pieces in their order: whole texts, and the pieces of a longer one into the tokens of the whole. */
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

  /** One after another: how many processors work is decided by who makes encoders, not by how many pieces wait. */
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
