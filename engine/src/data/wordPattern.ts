import { isObject, type TokenizerJson } from './tokenizerJson.js';

// White space as Unicode defines it, like in Hugging Face's regular expressions; JavaScript's \s differs in U+0085 and U+FEFF.

/** Words as GPT-2 splits them. */
const gpt2 =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The same if each digit is split off first as a word: for the text before it, a digit is like the end of the text. */
const gpt2BetweenDigits =
  /\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?![^\p{White_Space}\p{N}])|\p{White_Space}+/gu;

/** Words as Llama 3 and Qwen2 split them: numbers of up to this many digits, line ends with the punctuation before them. */
const llama3 = modern('{1,3}');
const qwen2 = modern('');

/** The patterns as written in these models' files. */
const splitPatterns: Readonly<Record<string, RegExp>> = {
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+":
    llama3,
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+":
    qwen2,
};

/** How a text is split before bytes are merged, for the known patterns; null for others. */
export function wordPattern({ json }: Pick<TokenizerJson, 'json'>): RegExp | null {
  const { pre_tokenizer: preTokenizer } = json;
  if (isByteLevel(preTokenizer, true)) return gpt2;
  if (!isObject(preTokenizer) || preTokenizer.type !== 'Sequence') return null;
  const parts: unknown = preTokenizer.pretokenizers;
  if (!Array.isArray(parts) || parts.length !== 2) return null;
  const [first, last] = parts as [unknown, unknown];
  if (!isObject(first)) return null;
  if (first.type === 'Digits')
    return first.individual_digits === true && isByteLevel(last, true) ? gpt2BetweenDigits : null;
  const { type, pattern, behavior, invert } = first;
  const isSplit = type === 'Split' && behavior === 'Isolated' && invert !== true && isObject(pattern);
  if (!isSplit || typeof pattern.Regex !== 'string' || !isByteLevel(last, false)) return null;
  return Object.hasOwn(splitPatterns, pattern.Regex) ? splitPatterns[pattern.Regex]! : null;
}

function isByteLevel(part: unknown, dividesItself: boolean): boolean {
  return (
    isObject(part) &&
    part.type === 'ByteLevel' &&
    part.add_prefix_space === false &&
    (part.use_regex !== false) === dividesItself
  );
}

function modern(digits: string): RegExp {
  const [space, other] = ['\\p{White_Space}', '\\P{White_Space}'];
  return new RegExp(
    [
      "'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])",
      '[^\\r\\n\\p{L}\\p{N}]?\\p{L}+',
      `\\p{N}${digits}`,
      ` ?[^${space}\\p{L}\\p{N}]+[\\r\\n]*`,
      `${space}*[\\r\\n]+`,
      `${space}+(?!${other})`,
      `${space}+`,
    ].join('|'),
    'gu',
  );
}
