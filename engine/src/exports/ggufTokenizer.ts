import { byteTable } from '../data/byteLevelBpe.js';
import { checkTokenizerJson, isObject, type TokenizerJson } from '../data/tokenizerJson.js';
import { ExportImpossible } from './exportImpossible.js';
import type { GgufValue } from './ggufFile.js';

/** Values of `tokenizer.ggml.token_type`. */
const tokenTypes = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const;

export interface GgufTokenizer {
  metadata: [key: string, value: GgufValue][];
  preTokenizer: string;
  /** False if llama.cpp has no rule that splits words like this tokenizer, and the nearest was taken. */
  isExact: boolean;
}

/**
 * Converts a tokenizer.json to GGUF's form: byte-level BPE, which llama.cpp calls `gpt2`. A text begins with the end-of-text token, as in
 * training and in our own generation. Throws ExportImpossible for another kind of tokenizer.
 */
export function ggufTokenizer(
  tokenizerJson: string,
  endOfTextId: number,
  vocabularySize: number,
  { otherEndIds, chatTemplate }: { otherEndIds: readonly number[]; chatTemplate: string | null },
): GgufTokenizer {
  const checked = checkTokenizerJson(tokenizerJson, { ids: [endOfTextId], name: null }, { isTrusted: true });
  const { type } = checked.json.model;
  if (type !== 'BPE' || byteTable(checked) === null)
    throw new ExportImpossible(
      'GGUF',
      'a tokenizer of byte-level BPE',
      `one of ${String(type)} with another decoder`,
    );
  const { preTokenizer, isExact } = preTokenizerOf(checked);
  const { tokens, types } = tokensOf(checked, vocabularySize);
  const uint32 = (value: number): GgufValue => ({ type: 'uint32', value });
  const bool = (value: boolean): GgufValue => ({ type: 'bool', value });
  return {
    preTokenizer,
    isExact,
    metadata: [
      ['tokenizer.ggml.model', { type: 'string', value: 'gpt2' }],
      ['tokenizer.ggml.pre', { type: 'string', value: preTokenizer }],
      ['tokenizer.ggml.tokens', { type: 'strings', value: tokens }],
      ['tokenizer.ggml.token_type', { type: 'int32s', value: types }],
      ['tokenizer.ggml.merges', { type: 'strings', value: checked.merges.map((merge) => merge.join(' ')) }],
      ['tokenizer.ggml.bos_token_id', uint32(endOfTextId)],
      ['tokenizer.ggml.eos_token_id', uint32(endOfTextId)],
      ['tokenizer.ggml.add_bos_token', bool(true)],
      ['tokenizer.ggml.add_eos_token', bool(false)],
      // GGUF has a field for one more: the token with which instruction-tuned models end a turn.
      ...optional('tokenizer.ggml.eot_token_id', otherEndIds[0], uint32),
      ...optional('tokenizer.chat_template', chatTemplate, (value): GgufValue => ({ type: 'string', value })),
    ],
  };
}

function optional<T>(
  key: string,
  value: T | null | undefined,
  make: (value: T) => GgufValue,
): [string, GgufValue][] {
  return value === null || value === undefined ? [] : [[key, make(value)]];
}

/** One entry per row of the embedding; rows without a token get a filler. */
function tokensOf(
  { vocabulary, addedTokens, specialIds }: TokenizerJson,
  vocabularySize: number,
): { tokens: string[]; types: number[] } {
  const tokens = Array.from({ length: vocabularySize }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(vocabularySize).fill(tokenTypes.unused);
  for (const [token, id] of vocabulary) {
    tokens[id] = token;
    types[id] = specialIds.has(id) ? tokenTypes.control : tokenTypes.normal;
  }
  for (const { id, content } of addedTokens) {
    tokens[id] = content;
    types[id] = specialIds.has(id) ? tokenTypes.control : tokenTypes.userDefined;
  }
  return { tokens, types };
}

/** How well-known model families split words, as written in their tokenizer.json, and llama.cpp's names for it. */
const splitPatterns: { pattern: string; merging: string; ignoring: string | null }[] = [
  {
    pattern:
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    // Llama 3 keeps a word that is a token; `dbrx` splits in the same way but merges.
    merging: 'dbrx',
    ignoring: 'llama-bpe',
  },
  {
    pattern:
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    merging: 'qwen2',
    ignoring: null,
  },
];

/** llama.cpp identifies rules only by name; unknown ones use GPT-2's, from which most others derive. */
function preTokenizerOf({ json }: TokenizerJson): { preTokenizer: string; isExact: boolean } {
  const steps = stepsOf(json.pre_tokenizer);
  const ignoresMerges = json.model.ignore_merges === true;
  // llama.cpp does not normalize, and puts no space before a text.
  const isPlain = (json.normalizer ?? null) === null && !steps.some((step) => step.add_prefix_space === true);
  const kinds = steps.map(({ type }) => type).join(' ');
  const cutsAsGpt2 = steps.at(-1)?.use_regex !== false;

  if (kinds === 'ByteLevel' && cutsAsGpt2)
    return { preTokenizer: 'gpt-2', isExact: isPlain && !ignoresMerges };
  if (kinds === 'Digits ByteLevel' && cutsAsGpt2 && steps[0]!.individual_digits === true)
    return { preTokenizer: 'smollm', isExact: isPlain && !ignoresMerges };
  if (kinds === 'Split ByteLevel' && !cutsAsGpt2) {
    const { pattern, behavior, invert } = steps[0]!;
    const regex = isObject(pattern) ? pattern.Regex : undefined;
    const known = splitPatterns.find((entry) => entry.pattern === regex);
    if (known !== undefined) {
      const name = ignoresMerges ? known.ignoring : known.merging;
      const isExact = isPlain && name !== null && behavior === 'Isolated' && invert !== true;
      return { preTokenizer: name ?? known.merging, isExact };
    }
  }
  return { preTokenizer: 'gpt-2', isExact: false };
}

function stepsOf(part: unknown): Record<string, unknown>[] {
  if (!isObject(part)) return [];
  if (part.type !== 'Sequence' || !Array.isArray(part.pretokenizers)) return [part];
  return (part.pretokenizers as unknown[]).flatMap(stepsOf);
}
