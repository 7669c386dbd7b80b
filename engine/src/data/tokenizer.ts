import { Tokenizer as NativeTokenizer } from 'tokenizers';
import { tokenToBytes } from './byteAlphabet.js';
import { DataError } from './dataError.js';
import { checkTokenizerJson, type TokenizerJson } from './tokenizerJson.js';

/** Text to tokens and back. */
export interface Tokenizer {
  readonly kind: 'bytes' | 'trainedBpe' | 'huggingFace';
  readonly vocabularySize: number;
  /** Stands after every document. */
  readonly endOfTextId: number;
  /** Adds no special tokens. */
  encode(text: string): Promise<ArrayLike<number>>;
  /** Leaves special tokens out; bytes that are not whole characters become U+FFFD. */
  decode(ids: ArrayLike<number>): Promise<string>;
  /** Bytes of text that a token stands for, empty for special tokens; null where a token alone does not say. */
  tokenBytes(id: number): Uint8Array | null;
}

const none = new Uint8Array(0);

/** One token per byte, and token 256 for the end of a text. */
export function bytesTokenizer(): Tokenizer {
  return {
    kind: 'bytes',
    vocabularySize: 257,
    endOfTextId: 256,
    encode: async (text) => Buffer.from(text, 'utf8'),
    decode: async (ids) => Buffer.from(Array.from(ids).filter((id) => id < 256)).toString('utf8'),
    tokenBytes: (id) => (id < 256 ? Uint8Array.of(id) : none),
  };
}

/** A tokenizer.json of Hugging Face; throws DataError TOKENIZER_INVALID. */
export function jsonTokenizer(json: string, kind: 'trainedBpe' | 'huggingFace'): Tokenizer {
  const checked = checkTokenizerJson(json);
  let native: NativeTokenizer;
  try {
    native = NativeTokenizer.fromString(json);
  } catch (error) {
    throw new DataError('TOKENIZER_INVALID', `tokenizer.json cannot be loaded: ${(error as Error).message}`, { cause: error });
  }
  const bytes = isByteLevel(checked) ? byteTable(checked) : null;
  return {
    kind,
    vocabularySize: checked.vocabularySize,
    endOfTextId: checked.endOfTextId,
    async encode(text) {
      const encoding = await native.encode(text, null, { addSpecialTokens: false });
      return encoding.getIds();
    },
    decode: async (ids) => await native.decode(Array.from(ids), true),
    tokenBytes: (id) => (bytes === null ? null : (bytes.get(id) ?? none)),
  };
}

/** Puts generated tokens together to text, a whole character at a time. */
export class TextStream {
  private readonly decoder = new TextDecoder('utf-8');
  private ids: number[] = [];
  private written = '';

  constructor(private readonly tokenizer: Tokenizer) {}

  /** Text that became certain with this token; empty while a character is incomplete. */
  async push(id: number): Promise<string> {
    const bytes = this.tokenizer.tokenBytes(id);
    if (bytes !== null) return this.decoder.decode(bytes, { stream: true });

    this.ids.push(id);
    const text = await this.tokenizer.decode(this.ids);
    if (text.endsWith('\ufffd')) return '';
    const added = text.slice(this.written.length);
    this.written = text;
    return added;
  }

  /** What is left; an incomplete character becomes U+FFFD. */
  async end(): Promise<string> {
    if (this.ids.length === 0) return this.decoder.decode();
    return (await this.tokenizer.decode(this.ids)).slice(this.written.length);
  }
}

function isByteLevel({ json }: TokenizerJson): boolean {
  const isType = (part: unknown): boolean => {
    if (typeof part !== 'object' || part === null) return false;
    const { type, decoders } = part as { type?: unknown; decoders?: unknown };
    return type === 'ByteLevel' || (Array.isArray(decoders) && decoders.some(isType));
  };
  return isType(json.decoder);
}

function byteTable({ vocabulary, specialIds, addedTokens }: TokenizerJson): Map<number, Uint8Array> | null {
  const table = new Map<number, Uint8Array>();
  for (const [token, id] of vocabulary) {
    if (specialIds.has(id)) continue;
    const bytes = tokenToBytes(token);
    if (bytes === null) return null;
    table.set(id, bytes);
  }
  for (const { id, content } of addedTokens) if (!specialIds.has(id)) table.set(id, Buffer.from(content, 'utf8'));
  return table;
}
