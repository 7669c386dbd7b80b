import type { EndTokens } from '../plan/endTokens.js';
import { defaultLimits } from './dataLimits.js';
import { byteLevelEncoder, byteTable } from './byteLevelBpe.js';
import { knownCharacters } from './knownCharacters.js';
import { loadNative, probeNative } from './nativeTokenizer.js';
import { checkTokenizerJson } from './tokenizerJson.js';

/** Text to tokens and back. */
export interface Tokenizer {
  readonly kind: 'bytes' | 'trainedBpe' | 'huggingFace';
  readonly vocabularySize: number;
  /** Follows every document. */
  readonly endOfTextId: number;
  /** Adds no special tokens. */
  encode(text: string): Promise<ArrayLike<number>>;
  /** The same with the positions where words begin; null if a text may be cut at any character. */
  encodeWithCuts: ((text: string) => Promise<CutTokens>) | null;
  /** Omits special tokens; bytes that are not whole characters become U+FFFD. */
  decode(ids: ArrayLike<number>): Promise<string>;
  /** Bytes of text that a token stands for, empty for special tokens; null if this depends on the tokens around it. */
  tokenBytes(id: number): Uint8Array | null;
  /** Number of characters of text that each token stands for, by id; null if all text is known. */
  knownCharacters(): Uint16Array | null;
}

export interface CutTokens {
  ids: ArrayLike<number>;
  /** Where words begin, in UTF-16 units, ascending. */
  places: ArrayLike<number>;
  /** Number of tokens before each position. */
  counts: ArrayLike<number>;
}

const none = new Uint8Array(0);

/** One token per byte, and token 256 for the end of a text. */
export function bytesTokenizer(): Tokenizer {
  return {
    kind: 'bytes',
    vocabularySize: 257,
    endOfTextId: 256,
    encode: async (text) => Buffer.from(text, 'utf8'),
    encodeWithCuts: null,
    decode: async (ids) => Buffer.from(Array.from(ids).filter((id) => id < 256)).toString('utf8'),
    tokenBytes: (id) => (id < 256 ? Uint8Array.of(id) : none),
    knownCharacters: () => null,
  };
}

/**
 * A tokenizer from a tokenizer.json of Hugging Face; throws DataError TOKENIZER_INVALID. A new one is first tested in a separate process.
 */
export async function jsonTokenizer(
  text: string,
  kind: 'trainedBpe' | 'huggingFace',
  {
    isTrusted = false,
    signal,
    endTokens,
    cpuSeconds = defaultLimits.tokenizerCpuSeconds,
  }: { isTrusted?: boolean; signal?: AbortSignal; endTokens?: EndTokens; cpuSeconds?: number } = {},
): Promise<Tokenizer> {
  const checked = checkTokenizerJson(text, endTokens, { isTrusted });
  const { vocabularySize, endOfTextId } = checked;
  const bytes = byteTable(checked);
  const tokenBytes = (id: number) => (bytes === null ? null : (bytes.get(id) ?? none));
  const encoder = byteLevelEncoder(checked);
  const isOwn = encoder !== null && bytes !== null;
  const needsNative = !isOwn || encoder.hasLimits;
  if (needsNative && !isTrusted) await probeNative(text, cpuSeconds, signal);
  const native = needsNative ? loadNative(checked) : null;
  if (isOwn) {
    const decode = (ids: ArrayLike<number>) =>
      Buffer.concat(Array.from(ids, (id) => bytes.get(id) ?? none)).toString('utf8');
    return {
      kind,
      vocabularySize,
      endOfTextId,
      encode: async (text) => (encoder.serves(text) ? encoder.encode(text).ids : await native!.encode(text)),
      encodeWithCuts: async (text) =>
        encoder.serves(text) ? encoder.encode(text) : await native!.encodeWithCuts(text),
      decode: async (ids) => decode(ids),
      tokenBytes,
      knownCharacters: () => null, // it has a token for every byte
    };
  }
  const { encode, encodeWithCuts, decode } = native!;
  return {
    kind,
    vocabularySize,
    endOfTextId,
    encode,
    encodeWithCuts,
    decode: (ids) => decode(Array.from(ids)),
    tokenBytes,
    knownCharacters: () => knownCharacters(checked),
  };
}

/** Converts generated tokens to text, one whole character at a time. */
export class TextStream {
  private readonly decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  /** Tokens that may still affect the text: those of the last certain text, followed by newer ones. */
  private ids: number[] = [];
  private certain = 0;

  constructor(private readonly tokenizer: Tokenizer) {}

  /** Text that became certain with this token; empty while a character is incomplete. */
  async push(id: number): Promise<string> {
    const bytes = this.tokenizer.tokenBytes(id);
    if (bytes !== null) return this.decoder.decode(bytes, { stream: true });

    this.ids.push(id);
    const added = await this.added();
    if (added === '' || added.endsWith('\ufffd')) return '';
    // The tokens of this text are kept a little longer, since the text of the next token can depend on the previous one.
    this.ids = this.ids.slice(this.certain);
    this.certain = this.ids.length;
    return added;
  }

  /** The remaining text; an incomplete character becomes U+FFFD. */
  async end(): Promise<string> {
    const rest = this.ids.length > this.certain ? await this.added() : '';
    this.ids = [];
    this.certain = 0;
    return rest + this.decoder.decode();
  }

  private async added(): Promise<string> {
    const [before, all] = await Promise.all([
      this.tokenizer.decode(this.ids.slice(0, this.certain)),
      this.tokenizer.decode(this.ids),
    ]);
    return all.slice(before.length);
  }
}
