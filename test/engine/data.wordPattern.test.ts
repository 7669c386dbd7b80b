import { describe, expect, it } from 'vitest';
import { byteLevelEncoder } from '../../engine/dist/data/byteLevelBpe.js';
import { loadNative } from '../../engine/dist/data/nativeTokenizer.js';
import { checkTokenizerJson, type TokenizerJson } from '../../engine/dist/data/tokenizerJson.js';
import { byteLevelTokenizerJson } from '../../engine/dist/data/trainBpe.js';

/** The pattern in these models' files. */
const patternOf = (digits: string) =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const split = (Regex: string) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false });
const byteLevel = (use_regex: boolean) => ({
  ...{ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex },
});
const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers });
const merges: [string, string][] = [
  ['h', 'e'],
  ['t', 'he'],
  ['Ġ', 'the'],
  ['l', 'l'],
  ['1', '2'],
  ['12', '3'],
  ['Ċ', 'Ċ'],
  ["'", 's'],
  ['Ġ', 'Ġ'],
  ['ab', 'c'],
];

interface Kind {
  pre_tokenizer: object;
  normalizer?: object;
  /** Whether words that are tokens are kept whole. */
  ignores?: boolean;
}

const kinds: Record<string, Kind> = {
  'GPT-2': { pre_tokenizer: byteLevel(true) },
  'Llama 3': { pre_tokenizer: sequence(split(patternOf('{1,3}')), byteLevel(false)), ignores: true },
  'Qwen2 and Qwen3': {
    pre_tokenizer: sequence(split(patternOf('')), byteLevel(false)),
    normalizer: { type: 'NFC' },
  },
  SmolLM2: { pre_tokenizer: sequence({ type: 'Digits', individual_digits: true }, byteLevel(true)) },
};

function read({ ignores = false, ...parts }: Kind): TokenizerJson {
  // `abc` is a token that no merge produces, like some of Llama 3.
  const json = JSON.parse(byteLevelTokenizerJson(merges.slice(0, -1))) as {
    model: { vocab: Record<string, number> };
  };
  if (ignores) {
    json.model.vocab['abc'] = Object.keys(json.model.vocab).length;
    Object.assign(json.model, { ignore_merges: true });
  }
  return checkTokenizerJson(JSON.stringify({ ...json, ...parts }), 'anyone', { isTrusted: true });
}

/** Every character that may matter, within letters, digits, spaces, punctuation and line ends. */
function* surroundings(): Generator<string> {
  for (let begin = 0; begin < 0x20000; begin += 64) {
    // Only the first of the ideographs and syllables, since all of them are letters.
    const isLong = (begin >= 0x3500 && begin < 0x9f00) || (begin >= 0xac80 && begin < 0xd700);
    if (isLong || (begin >= 0xd800 && begin < 0xf900)) continue;
    let text = '';
    for (let code = begin; code < begin + 64; code++) {
      const c = String.fromCodePoint(code);
      text += `a${c}b ${c}1${c}2  ${c}'${c}l'l${c}'r${c}'${c}e${c}${c} \n${c}\t`;
    }
    yield text;
  }
}

const texts = [
  "the 1234567 lines don't, DON'T, they'LL be  12 3\r\n\r\n  \n x",
  "abc abcd 'abc the the\u00a0the ...\n\n--\r\n  end  ",
  'déjà vu, e\u0301 cafe\u0301, \u1100\u1161\u11a8, \u212b and \ufb01',
  '日本語 テスト 12３４ 🙂🙂\u200d🙂 ',
];

describe.each(Object.entries(kinds))('words as %s cuts them', (_, parts) => {
  const checked = read(parts);
  const own = byteLevelEncoder(checked)!;
  const native = loadNative(checked);

  it('are those of the package, around every character', async () => {
    const wrong: string[] = [];
    let served = 0;
    for (const text of [...texts, ...surroundings()]) {
      if (!own.serves(text)) continue;
      served++;
      const expected = await native.encodeWithCuts(text);
      const found = own.encode(text);
      if (JSON.stringify(Array.from(found.ids)) === JSON.stringify(Array.from(expected.ids))) continue;
      // Finds the character that fails.
      for (const c of new Set(text))
        for (const near of [`a${c}b`, ` ${c}1${c}2`, `  ${c}`, `'${c}`, `l'l${c}`, `${c}\n`])
          if (
            own.serves(near) &&
            JSON.stringify(Array.from(own.encode(near).ids)) !== JSON.stringify(await native.encode(near))
          )
            wrong.push(`U+${c.codePointAt(0)!.toString(16)} in ${JSON.stringify(near)}`);
      wrong.push(JSON.stringify(text.slice(0, 40)));
    }
    expect(wrong).toEqual([]);
    expect(served).toBeGreaterThan(500);
  });
});

describe('texts that are not in normal form', () => {
  it('are left to the package', () => {
    const own = byteLevelEncoder(read(kinds['Qwen2 and Qwen3']!))!;
    expect(own.serves('e\u0301')).toBe(false);
    expect(own.serves('é')).toBe(true);
    expect(byteLevelEncoder(read(kinds['Llama 3']!))!.serves('e\u0301')).toBe(true);
  });
});

describe('a pattern that is not known', () => {
  it('is left to the package, whole', () => {
    const parts = { pre_tokenizer: sequence(split('\\s+'), byteLevel(false)) };
    expect(byteLevelEncoder(read(parts))).toBeNull();
  });
});
