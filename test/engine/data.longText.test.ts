import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Dataset, jsonTokenizer, type Tokenizer } from '@relora/engine/data';
import { PieceEncoder } from '../../engine/dist/data/longText.js';
import { byteLevelTokenizerJson } from '../../engine/dist/data/trainBpe.js';
import { dataFolder, sentences } from './dataFixtures.js';

const { source, prepare } = dataFolder();

interface Json {
  model: { vocab: Record<string, number>; merges: [string, string][]; [key: string]: unknown };
  added_tokens: object[];
  [key: string]: unknown;
}

const plain = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: false };

/** Byte-level BPE with some words, and tokens of several punctuation marks, line ends and spaces, through which a cut may go. */
function byteLevel(changes: Partial<Json> = {}): string {
  const merges: [string, string][] = [
    ['Ġ', 't'],
    ['Ġt', 'h'],
    ['Ġth', 'e'],
    ['Ċ', 'Ċ'],
    ['.', 'Ċ'],
    ['.', 'ĊĊ'],
    ['Ġ', 'Ġ'],
    ['ĠĠ', 'ĠĠ'],
    ['ĠĠĠĠ', 'ĠĠĠĠ'],
    ['1', '2'],
    ['12', '3'],
    ['a', 'a'],
    ['aa', 'aa'],
    ['č', 'Ċ'],
  ];
  const json = JSON.parse(byteLevelTokenizerJson(merges)) as Json;
  const id = Object.keys(json.model.vocab).length;
  json.added_tokens.push({ id, content: '<| a  b |>', ...plain });
  return JSON.stringify({ ...json, ...changes });
}

const split = (Regex: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
  ],
});
const llama3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const qwen =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** Like Llama 2: without words, with marks for spaces, one of which precedes the text. */
const metaspace = (parts: object) => {
  const tokens = ['<unk>', '</s>', '▁', '▁▁', 'th', 'the', '▁the', 'er', 'ri', '▁ri', 'river', 'aa', 'aaaa'];
  const characters = [...new Set('abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789.,!?\n\r\t-–é🙂日本')];
  const extra = ['riv', 've', 'ver'];
  const vocab = Object.fromEntries([...new Set([...tokens, ...characters, ...extra])].map((t, i) => [t, i]));
  const merges = [
    ['t', 'h'],
    ['th', 'e'],
    ['▁', 'the'],
    ['e', 'r'],
    ['r', 'i'],
    ['▁', 'ri'],
    ['▁', '▁'],
    ['a', 'a'],
    ['aa', 'aa'],
  ];
  return JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [{ id: 1, content: '</s>', ...plain, special: true }],
    post_processor: null,
    decoder: null,
    ...parts,
    model: {
      type: 'BPE',
      vocab,
      merges,
      unk_token: '<unk>',
      fuse_unk: true,
      byte_fallback: false,
      dropout: null,
    },
  });
};

const prepend = {
  type: 'Sequence',
  normalizers: [
    { type: 'Prepend', prepend: '▁' },
    { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
  ],
};

const tokenizers: [name: string, json: string][] = [
  ['GPT-2', byteLevel()],
  ['Llama 3', byteLevel({ pre_tokenizer: split(llama3) })],
  ['Qwen 2', byteLevel({ pre_tokenizer: split(qwen), normalizer: { type: 'NFC' } })],
  [
    'GPT-2 with a space before a text',
    byteLevel({
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    }),
  ],
  [
    'digits apart',
    byteLevel({
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: [
          { type: 'Digits', individual_digits: true },
          { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
        ],
      },
    }),
  ],
  ['no words, as Llama 2', metaspace({ normalizer: prepend, pre_tokenizer: null })],
  [
    'Metaspace',
    metaspace({
      normalizer: null,
      pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    }),
  ],
  ['white space', metaspace({ normalizer: { type: 'Lowercase' }, pre_tokenizer: { type: 'Whitespace' } })],
];

/** Text in which any position may be a bad one to cut. */
function text(length: number, seed: number): string {
  const parts = [
    'the river ',
    '.\n\n',
    '   ',
    '\r\n',
    "they'LL ",
    '12345 ',
    '🙂日本 ',
    'aaaa'.repeat(9),
    '!?!\n',
    '<| a  b |>',
    ' é',
    '\t\t x',
    ' '.repeat(40),
    '\n'.repeat(7),
  ];
  let state = seed;
  let result = '';
  while (result.length < length) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    result += parts[(state >>> 8) % parts.length]!;
  }
  return result.slice(0, length);
}

/** The tokens of a text that arrives in pieces of about `length` characters. */
async function inPieces(tokenizer: Tokenizer, whole: string, length: number): Promise<number[]> {
  const encoder = new PieceEncoder(tokenizer);
  const ids: number[] = [];
  for (let start = 0; start < whole.length;) {
    let end = Math.min(whole.length, start + length);
    if (end < whole.length && (whole.charCodeAt(end - 1) & 0xfc00) === 0xd800) end++;
    const piece = whole.slice(start, end);
    const endsText = end === whole.length;
    const parts = { text: piece, textBytes: 0, endsDocument: endsText, endsText, isTrained: true };
    for (const id of Array.from((await encoder.encode([parts]))[0]!.ids)) ids.push(id);
    start = end;
  }
  return ids;
}

describe.each(tokenizers)('a long text in pieces under %s', (_, json) => {
  it('has the tokens of the whole, wherever it is cut', async () => {
    const tokenizer = await jsonTokenizer(json, 'huggingFace');
    for (const [seed, length] of [
      [1, 997],
      [2, 5003],
      [3, 10_007],
      [4, 19_999],
    ] as const) {
      const whole = text(60_000, seed);
      const expected = Array.from(await tokenizer.encode(whole));
      const found = await inPieces(tokenizer, whole, length);
      const differs = found.findIndex((id, i) => id !== expected[i]);
      expect({ seed, differs, count: found.length }).toEqual({ seed, differs: -1, count: expected.length });
    }
  });

  it('has them with words that are longer than a piece', async () => {
    const tokenizer = await jsonTokenizer(json, 'huggingFace');
    for (const long of ['a'.repeat(30_001), ' '.repeat(30_000), '日本'.repeat(9000), '\n'.repeat(20_000)]) {
      const whole = `${text(9000, 5)}${long}${text(9000, 6)}`;
      const found = await inPieces(tokenizer, whole, 7001);
      expect(found).toEqual(Array.from(await tokenizer.encode(whole)));
    }
  });
});

it('a data set of one long document has the tokens that its tokenizer gives the uncut text', async () => {
  const json = byteLevel({ pre_tokenizer: split(llama3) });
  const whole = sentences(20_000, 3).replaceAll('. ', '.\n\n') + text(700_000, 9);
  const folder = await prepare([source('long.txt', whole, 'text')], {
    tokenizer: { kind: 'huggingFace', tokenizerJson: json },
  });
  const dataset = await Dataset.open(folder, { verify: true });
  const found = dataset.train.read(0, dataset.train.tokenCount);
  const expected = await dataset.tokenizer.encode(readFileSync(source('x.txt', whole, 'text').path, 'utf8'));
  expect(found.length).toBe(expected.length + 1);
  expect(found.findIndex((id, i) => i < expected.length && id !== expected[i])).toBe(-1);
  await dataset.close();
});
