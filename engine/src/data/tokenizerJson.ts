import { DataError } from './dataError.js';
import { defaultLimits } from './limits.js';

export interface TokenizerJson {
  json: { model: Record<string, unknown>; decoder?: unknown };
  vocabulary: Map<string, number>;
  addedTokens: { id: number; content: string }[];
  specialIds: Set<number>;
  /** One more than the highest id. */
  vocabularySize: number;
  endOfTextId: number;
}

/** Ids beyond this would make an embedding that no machine holds. */
const vocabularySizeMax = 1 << 20;

/** How well-known models call the token after a text, most specific first. */
const endOfTextNames = ['<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '<|im_end|>', '<|eot_id|>'];

/**
 * Checks the shape of a tokenizer.json before native code sees it; throws DataError TOKENIZER_INVALID. Maps are used
 * throughout, since a token may be called `__proto__`.
 */
export function checkTokenizerJson(text: string): TokenizerJson {
  const invalid = (problem: string) => new DataError('TOKENIZER_INVALID', `tokenizer.json ${problem}`);
  const sizeBytes = Buffer.byteLength(text);
  if (sizeBytes > defaultLimits.tokenizerBytesMax) throw invalid(`has ${sizeBytes} bytes, the limit is ${defaultLimits.tokenizerBytesMax}`);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw invalid(`is not JSON: ${(error as Error).message}`);
  }
  if (!isObject(json)) throw invalid('should be an object');
  const { model, added_tokens: added = [] } = json;
  if (!isObject(model)) throw invalid('should have an object "model"');
  if (!Array.isArray(added)) throw invalid('should have an array "added_tokens"');

  const vocabulary = readVocabulary(model.vocab, invalid);
  const ids = new Set<number>();
  for (const [token, id] of vocabulary) {
    if (!isId(id)) throw invalid(`gives the token ${JSON.stringify(token)} the id ${JSON.stringify(id)}, ids are whole numbers below ${vocabularySizeMax}`);
    if (ids.has(id)) throw invalid(`gives the id ${id} twice`);
    ids.add(id);
  }
  if (Array.isArray(model.merges)) checkMerges(model.merges, vocabulary, invalid);

  const addedTokens: { id: number; content: string }[] = [];
  const specialIds = new Set<number>();
  for (const entry of added as unknown[]) {
    if (!isObject(entry) || !isId(entry.id) || typeof entry.content !== 'string') {
      throw invalid('has an entry of "added_tokens" without whole number "id" and text "content"');
    }
    addedTokens.push({ id: entry.id, content: entry.content });
    if (entry.special === true) specialIds.add(entry.id);
    ids.add(entry.id);
  }
  if (ids.size === 0) throw invalid('has no tokens');

  const byName = new Map([...vocabulary, ...addedTokens.map(({ content, id }) => [content, id] as const)]);
  const endOfTextId = endOfTextNames.map((name) => byName.get(name)).find((id) => id !== undefined);
  if (endOfTextId === undefined) throw invalid(`has no token for the end of a text, one of ${endOfTextNames.join(', ')}`);
  specialIds.add(endOfTextId);
  let vocabularySize = 0;
  for (const id of ids) vocabularySize = Math.max(vocabularySize, id + 1);
  return { json: json as unknown as TokenizerJson['json'], vocabulary, addedTokens, specialIds, vocabularySize, endOfTextId };
}

/** BPE and WordPiece have an object of ids, Unigram an array of [token, score]. */
function readVocabulary(vocab: unknown, invalid: (problem: string) => Error): Map<string, number> {
  if (Array.isArray(vocab)) {
    return new Map(
      vocab.map((entry: unknown, id) => {
        if (!Array.isArray(entry) || typeof entry[0] !== 'string') throw invalid(`has no text at entry ${id} of "model.vocab"`);
        return [entry[0], id];
      }),
    );
  }
  if (!isObject(vocab)) throw invalid('should have an object or array "model.vocab"');
  return new Map(Object.entries(vocab) as [string, number][]);
}

function checkMerges(merges: unknown[], vocabulary: ReadonlyMap<string, number>, invalid: (problem: string) => Error): void {
  for (const [index, merge] of merges.entries()) {
    const parts: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
    if (!Array.isArray(parts) || parts.length !== 2 || !parts.every((part) => typeof part === 'string' && vocabulary.has(part))) {
      throw invalid(`has at entry ${index} of "model.merges" not two known tokens: ${JSON.stringify(merge)?.slice(0, 80)}`);
    }
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isId(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < vocabularySizeMax;
}
