import { DataError, describeValue } from './dataErrors.js';
import { defaultLimits } from './dataLimits.js';
import { noEndTokens, type EndTokens } from '../plan/endTokens.js';
import { isLinear } from './regexPattern.js';

/** A checked tokenizer.json. */
export interface TokenizerJson {
  json: { model: Record<string, unknown>; [key: string]: unknown };
  vocabulary: ReadonlyMap<string, number>;
  /** In order; each is a pair of tokens. Empty for models without merges. */
  merges: readonly (readonly [string, string])[];
  addedTokens: readonly AddedToken[];
  /** Ids that stand for no text. */
  specialIds: ReadonlySet<number>;
  /** The highest id plus one. */
  vocabularySize: number;
  endOfTextId: number;
}

export interface AddedToken {
  id: number;
  content: string;
  /** Matched in text as it is, without conditions on its surroundings. */
  isPlain: boolean;
}

/** Larger ids would make an embedding that does not fit on any machine. */
const vocabularySizeMax = 1 << 20;
const tokenLengthMax = 4096;

/** Names of the end-of-text token in well-known models, most specific first; used if the model's files do not name it. */
const endOfTextNames = [
  '<|endoftext|>',
  '<|end_of_text|>',
  '</s>',
  '<eos>',
  '<|im_end|>',
  '<|eot_id|>',
  '[SEP]',
];

const file = 'tokenizer.json';

function invalid(where: string, expected: string, got: unknown): DataError {
  return new DataError('TOKENIZER_INVALID', { file, where, expected, got: describeValue(got) });
}

/**
 * Checks a tokenizer.json before native code uses it; throws DataError TOKENIZER_INVALID. Uses Maps throughout, since a token may be called
 * `__proto__`.
 */
export function checkTokenizerJson(
  text: string,
  endTokens: EndTokens | 'anyone' = noEndTokens,
  { isTrusted = false }: { isTrusted?: boolean } = {},
): TokenizerJson {
  const sizeBytes = Buffer.byteLength(text);
  const { tokenizerBytesMax } = defaultLimits;
  if (sizeBytes > tokenizerBytesMax) throw invalid('size', `at most ${tokenizerBytesMax} bytes`, sizeBytes);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new DataError('TOKENIZER_INVALID', {
      file,
      where: 'start',
      expected: 'JSON',
      got: (error as Error).message.slice(0, 120),
    });
  }
  if (!isObject(json)) throw invalid('start', 'an object', json);
  const { model, added_tokens: added = [] } = json;
  if (!isObject(model)) throw invalid('model', 'an object', model);
  if (!Array.isArray(added)) throw invalid('added_tokens', 'a list', added);

  const vocabulary = readVocabulary(model.vocab);
  const merges = readMerges(model.merges, vocabulary);
  const { addedTokens, specialIds } = readAddedTokens(added, vocabulary, isTrusted);
  checkPatterns(json);

  const byName = new Map([...vocabulary, ...addedTokens.map(({ content, id }) => [content, id] as const)]);
  const endOfTextId = endTokens === 'anyone' ? -1 : endOfText(byName, endTokens);
  specialIds.add(endOfTextId);
  let vocabularySize = 0;
  for (const id of byName.values()) vocabularySize = Math.max(vocabularySize, id + 1);
  return {
    json: json as TokenizerJson['json'],
    vocabulary,
    merges,
    addedTokens,
    specialIds,
    vocabularySize,
    endOfTextId,
  };
}

/** Of the ids that a model names, the one with which its tokenizer ends texts, else the first; of well-known names the first. */
function endOfText(byName: ReadonlyMap<string, number>, { ids, name, isAsked = false }: EndTokens): number {
  const known = new Set(byName.values());
  const named = name === null ? undefined : byName.get(name);
  if (isAsked && named === undefined) throw invalid('end_token', 'a token of tokenizer.json', name);
  for (const id of ids)
    if (!known.has(id)) throw invalid('eos_token_id', 'the id of a token of tokenizer.json', id);
  if (ids.length > 0) return named !== undefined && ids.includes(named) ? named : ids[0]!;
  const found = named ?? endOfTextNames.map((text) => byName.get(text)).find((id) => id !== undefined);
  if (found !== undefined) return found;
  const expected = `a token for the end of a text, one of ${endOfTextNames.join(' ')}, or an eos_token_id in the config.json next to it`;
  throw invalid('added_tokens', expected, undefined);
}

/** BPE, WordPiece and WordLevel have an object of ids, Unigram has a list of [token, score]. */
function readVocabulary(vocab: unknown): Map<string, number> {
  const where = 'model.vocab';
  if (!Array.isArray(vocab) && !isObject(vocab)) throw invalid(where, 'an object or a list', vocab);
  const entries = Array.isArray(vocab) ? vocab.map(unigramEntry) : Object.entries(vocab);
  if (entries.length > vocabularySizeMax)
    throw invalid(where, `at most ${vocabularySizeMax} tokens`, entries.length);
  if (entries.length === 0) throw invalid(where, 'at least one token', 0);
  const vocabulary = new Map<string, number>();
  const ids = new Set<number>();
  for (const [token, id] of entries) {
    if (token.length > tokenLengthMax)
      throw invalid(where, `tokens of at most ${tokenLengthMax} characters`, token.length);
    if (!isId(id))
      throw invalid(`${where}[${JSON.stringify(token)}]`, `a whole number below ${vocabularySizeMax}`, id);
    if (ids.has(id)) throw invalid(`${where}[${JSON.stringify(token)}]`, 'an id that no other token has', id);
    ids.add(id);
    vocabulary.set(token, id);
  }
  return vocabulary;
}

function unigramEntry(entry: unknown, id: number): [string, number] {
  if (!Array.isArray(entry) || typeof entry[0] !== 'string' || !Number.isFinite(entry[1]))
    throw invalid(`model.vocab[${id}]`, 'a token and its score', entry);
  return [entry[0], id];
}

function readMerges(merges: unknown, vocabulary: ReadonlyMap<string, number>): [string, string][] {
  if (merges === undefined || merges === null) return [];
  if (!Array.isArray(merges)) throw invalid('model.merges', 'a list', merges);
  if (merges.length > vocabularySizeMax)
    throw invalid('model.merges', `at most ${vocabularySizeMax} entries`, merges.length);
  return merges.map((merge: unknown, index) => {
    const parts: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
    if (!Array.isArray(parts) || parts.length !== 2)
      throw invalid(`model.merges[${index}]`, 'two tokens', merge);
    const [left, right] = parts as [unknown, unknown];
    if (typeof left !== 'string' || typeof right !== 'string')
      throw invalid(`model.merges[${index}]`, 'two tokens', merge);
    for (const token of [left, right, left + right]) {
      // The prefix of word continuations is in both parts but only once in the merged token; the native code checks that.
      if (!vocabulary.has(token) && (token !== left + right || !right.startsWith('##'))) {
        throw invalid(`model.merges[${index}]`, 'tokens of the vocabulary', token);
      }
    }
    return [left, right];
  });
}

function readAddedTokens(
  entries: readonly unknown[],
  vocabulary: ReadonlyMap<string, number>,
  isTrusted: boolean,
): { addedTokens: AddedToken[]; specialIds: Set<number> } {
  const tokenOfId = new Map([...vocabulary].map(([token, id]) => [id, token]));
  const specialIds = new Set<number>();
  const added = new Set<string>();
  let next = vocabulary.size;
  const addedTokens = entries.map((entry, index): AddedToken => {
    const where = `added_tokens[${index}]`;
    if (!isObject(entry)) throw invalid(where, 'an object', entry);
    const { id, content, special } = entry;
    if (!isId(id)) throw invalid(`${where}.id`, `a whole number below ${vocabularySizeMax}`, id);
    if (typeof content !== 'string' || content === '' || content.length > tokenLengthMax)
      throw invalid(`${where}.content`, 'a text', content);
    const known = vocabulary.get(content);
    if (known !== undefined && known !== id)
      throw invalid(`${where}.id`, `${known}, as in the vocabulary`, id);
    const holder = tokenOfId.get(id);
    if (holder !== undefined && holder !== content)
      throw invalid(`${where}.id`, 'an id that no other token has', id);
    // Hugging Face's library assigns ids to tokens missing from the vocabulary: training and inference would differ.
    if (known === undefined && !added.has(content)) {
      // Tokenizers accepted before this check existed stay accepted.
      if (id !== next && !isTrusted)
        throw invalid(`${where}.id`, `${next}, as Hugging Face numbers ${JSON.stringify(content)}`, id);
      next = id + 1;
    }
    if (known !== undefined) next = Math.max(next, known + 1);
    added.add(content);
    tokenOfId.set(id, content);
    if (special === true) specialIds.add(id);
    return {
      id,
      content,
      isPlain: entry.single_word !== true && entry.lstrip !== true && entry.rstrip !== true,
    };
  });
  return { addedTokens, specialIds };
}

/** Parts of normalizer, pre-tokenizer and decoder together; tokenizers in use have a few dozen. */
const partsMax = 10_000;

/** A pattern like (a+)+ can take hours for one line of text. */
function checkPatterns(json: Record<string, unknown>): void {
  const waiting: unknown[] = [json.normalizer, json.pre_tokenizer, json.decoder];
  for (let seen = 0; waiting.length > 0; seen++) {
    if (seen > partsMax) throw invalid('pre_tokenizer', `at most ${partsMax} parts`, 'more');
    const part = waiting.pop();
    if (isObject(part)) {
      const pattern = part.Regex;
      if (typeof pattern === 'string' && !isLinear(pattern))
        throw invalid('pattern', 'one without repeats inside of repeats', pattern);
      for (const value of Object.values(part)) waiting.push(value);
    } else if (Array.isArray(part)) for (const value of part) waiting.push(value);
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isId(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < vocabularySizeMax;
}
