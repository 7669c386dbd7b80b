import { tokenToBytes } from './byteAlphabet.js';
import { isObject, type TokenizerJson } from './tokenizerJson.js';

/** White space, combining marks and invisible characters: a tokenizer may drop them without losing text. */
const unseen = /[\s\p{M}\p{C}]+/gu;

/** Number of visible characters of a text; a letter with its accents counts as one. */
export function seenCharacters(text: string): number {
  return codePoints(text.normalize('NFC').replace(unseen, ''));
}

/**
 * How many visible characters each token stands for, by id; 0 for the token for unknown text. The sum over the tokens of a text shows how
 * much of it was lost, whether to unknown tokens, of which one may stand for a whole line, or dropped.
 */
export function knownCharacters({
  json,
  vocabulary,
  addedTokens,
  vocabularySize,
}: TokenizerJson): Uint16Array {
  const { model } = json;
  const marks = marksOf(json);
  const known = new Uint16Array(vocabularySize);
  for (const [token, id] of vocabulary) known[id] = charactersOf(token, marks);
  for (const { id, content } of addedTokens) known[id] = seenCharacters(content);
  const unknown =
    typeof model.unk_token === 'string' ? vocabulary.get(model.unk_token) : (model.unk_id as number | null);
  if (typeof unknown === 'number' && unknown < vocabularySize) known[unknown] = 0;
  return known;
}

/** How tokens are written. */
interface Marks {
  isByteLevel: boolean;
  /** A token like <0x0A> stands for a byte. */
  hasBytes: boolean;
  /** Prefix of a token that continues a word, and suffix of one that ends a word. */
  prefix: string;
  suffix: string;
  /** Replacements for a space. */
  spaces: string[];
}

function marksOf({ model, normalizer, pre_tokenizer, decoder }: TokenizerJson['json']): Marks {
  const text = (value: unknown) => (typeof value === 'string' ? value : '');
  const marks: Marks = {
    isByteLevel: false,
    hasBytes: model.byte_fallback === true,
    prefix: text(model.continuing_subword_prefix) || (model.type === 'WordPiece' ? '##' : ''),
    suffix: text(model.end_of_word_suffix),
    spaces: ['\u2581'],
  };
  const waiting: unknown[] = [normalizer, pre_tokenizer, decoder];
  while (waiting.length > 0) {
    const part = waiting.pop();
    if (Array.isArray(part)) for (const value of part as unknown[]) waiting.push(value);
    if (!isObject(part)) continue;
    marks.isByteLevel ||= part.type === 'ByteLevel';
    if (part.type === 'Metaspace') marks.spaces.push(text(part.replacement));
    for (const value of Object.values(part)) waiting.push(value);
  }
  return marks;
}

function charactersOf(token: string, { isByteLevel, hasBytes, prefix, suffix, spaces }: Marks): number {
  const bytes = isByteLevel ? tokenToBytes(token) : null;
  if (bytes !== null) return bytes.filter(beginsSeen).length;
  const byte = hasBytes ? /^<0x([0-9A-F]{2})>$/.exec(token)?.[1] : undefined;
  if (byte !== undefined) return beginsSeen(parseInt(byte, 16)) ? 1 : 0;
  let text = token;
  if (prefix !== '' && text.startsWith(prefix)) text = text.slice(prefix.length);
  if (suffix !== '' && text.endsWith(suffix)) text = text.slice(0, -suffix.length);
  for (const space of spaces) if (space !== '') text = text.replaceAll(space, '');
  return seenCharacters(text);
}

/** Whether a byte of UTF-8 begins a visible character. */
function beginsSeen(byte: number): boolean {
  return byte > 0x20 && byte !== 0x7f && (byte & 0xc0) !== 0x80;
}

function codePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i < text.length; i++) if ((text.charCodeAt(i) & 0xfc00) === 0xdc00) count--;
  return count;
}
