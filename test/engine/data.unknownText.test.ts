import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { appendDataset, type DatasetManifest } from '@relora/engine/data';
import { dataFolder, failure } from './dataFixtures.js';

const { folder, source, prepare } = dataFolder();

/** A tokenizer.json with this model and these parts. */
function tokenizerJson(model: object, parts: object = {}): string {
  const nothing = { truncation: null, padding: null, normalizer: null, pre_tokenizer: null, decoder: null };
  const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return JSON.stringify({
    ...{ version: '1.0', ...nothing, post_processor: null, ...parts },
    added_tokens: [{ ...special, id: 0, content: '</s>' }],
    model,
  });
}

const idsOf = (tokens: string[]) => Object.fromEntries(tokens.map((token, id) => [token, id]));
const letters = [...'abcdefghijklmnopqrstuvwxyz'];
const withSpaces = { pre_tokenizer: { type: 'Whitespace' } };
const pieces = { continuing_subword_prefix: '##', max_input_chars_per_word: 100 };
const bpe = { type: 'BPE', merges: [], ignore_merges: false };

/** Each kind knows only small Latin letters. */
const kinds: Record<string, string> = {
  WordPiece: tokenizerJson(
    {
      ...{ type: 'WordPiece', unk_token: '<unk>', ...pieces },
      vocab: idsOf(['</s>', '<unk>', ...letters, ...letters.map((letter) => `##${letter}`)]),
    },
    withSpaces,
  ),
  WordLevel: tokenizerJson(
    { type: 'WordLevel', unk_token: '<unk>', vocab: idsOf(['</s>', '<unk>', 'the', 'river', 'e', 'lite']) },
    withSpaces,
  ),
  // For these two a run of unknown characters is a single token.
  Unigram: tokenizerJson(
    { type: 'Unigram', unk_id: 1, vocab: ['</s>', '<unk>', '▁', ...letters].map((token) => [token, -3]) },
    { pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true } },
  ),
  'BPE that fuses what is unknown': tokenizerJson(
    { ...bpe, unk_token: '<unk>', fuse_unk: true, vocab: idsOf(['</s>', '<unk>', ...letters]) },
    withSpaces,
  ),
  // These drop unknown text.
  'BPE without a token for what is unknown': tokenizerJson(
    { ...bpe, vocab: idsOf(['</s>', ...letters]) },
    withSpaces,
  ),
  'byte-level BPE that lacks bytes': tokenizerJson(
    { ...bpe, vocab: idsOf(['</s>', 'Ġ', 'Ċ', ...letters]) },
    {
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    },
  ),
};

const known = 'the river ';
const unknown = '川の流れ ';

async function manifestOf(json: string, texts: string[], threads = 1): Promise<DatasetManifest> {
  const prepared = await preparedWith(json, texts, threads);
  return JSON.parse(readFileSync(join(prepared, 'manifest.json'), 'utf8')) as DatasetManifest;
}

async function preparedWith(json: string, texts: string[], threads = 1): Promise<string> {
  const rows = texts.map((text) => `${JSON.stringify({ text })}\n`).join('');
  return await prepare([source('texts.jsonl', rows, 'jsonl')], {
    tokenizer: { kind: 'huggingFace', tokenizerJson: json },
    threads,
  });
}

describe.each(Object.entries(kinds))('text that a tokenizer does not know: %s', (_, json) => {
  it('is refused with its place where it is all, or nearly all', async () => {
    const error = await failure(
      manifestOf(json, [known, unknown.repeat(50), unknown.repeat(50)]),
      'TEXT_LOST',
    );
    expect(error.message).toBe(
      'texts.jsonl, document 2: the tokenizer knows 0 of its 200 characters, and 99 % of all text is unknown to it',
    );
  });

  it('is refused where most of each document is', async () => {
    const error = await failure(manifestOf(json, [known, `${known}${unknown.repeat(5)}`]), 'TEXT_LOST');
    expect(error.message).toContain('texts.jsonl, document 2: the tokenizer knows 8 of its 28 characters');
  });

  it('is refused where some documents are nothing else', async () => {
    const texts = [...Array<string>(30).fill(known), unknown];
    expect((await failure(manifestOf(json, texts), 'TEXT_LOST')).message).toContain('document 31');
  });

  it('is counted where it is a part, and not where there is hardly any', async () => {
    const part = [known, known, `${known}${unknown}`];
    const expected = { share: 4 / 28, first: { file: 'texts.jsonl', document: 3 } };
    expect((await manifestOf(json, part)).unknown).toEqual(expected);
    expect((await manifestOf(json, part, 2)).unknown).toEqual(expected);
    expect(await manifestOf(json, [known.repeat(100) + unknown])).not.toHaveProperty('unknown');
  });

  it('is not what normalizers or spaces leave out', async () => {
    expect(await manifestOf(json, [` \n${known}${' \t\n'.repeat(500)}`])).not.toHaveProperty('unknown');
  });
});

describe('text that a tokenizer knows', () => {
  it('may have accents that it leaves out', async () => {
    const normalizers = [{ type: 'NFD' }, { type: 'StripAccents' }, { type: 'Lowercase' }];
    const parts = { ...withSpaces, normalizer: { type: 'Sequence', normalizers } };
    const json = tokenizerJson(JSON.parse(kinds.WordPiece!).model as object, parts);
    expect(await manifestOf(json, ['É l\u0301ite', 'ÉLITE'])).not.toHaveProperty('unknown');
  });

  it('may be known by its bytes alone', async () => {
    const bytes = Array.from(
      { length: 256 },
      (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
    );
    const model = {
      ...bpe,
      unk_token: '<unk>',
      byte_fallback: true,
      vocab: idsOf(['</s>', '<unk>', ...bytes, '▁']),
    };
    const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
    const json = tokenizerJson(model, { normalizer: replace });
    expect(await manifestOf(json, [known + unknown + '🙂 é'])).not.toHaveProperty('unknown');
  });
});

describe('a data set that is appended to', () => {
  it('says what of both is unknown', async () => {
    const json = kinds.WordPiece!;
    const base = await preparedWith(json, [`${known}${unknown}`]);
    const added = await preparedWith(json, [known.repeat(4), 'the river and the stone']);
    const bytes = Buffer.byteLength(`${known}${unknown}`) + 40 + 23;
    const share = ((4 / 12) * Buffer.byteLength(`${known}${unknown}`)) / bytes;
    const manifest = await appendDataset(base, added, join(folder, 'appended'));
    expect(manifest.unknown?.share).toBeCloseTo(share, 10);
    const opposite = await appendDataset(added, base, join(folder, 'appended-after'));
    expect(opposite.unknown).toEqual({ ...manifest.unknown, first: { file: 'texts.jsonl', document: 1 } });
    expect(await appendDataset(added, added, join(folder, 'known'))).not.toHaveProperty('unknown');
  });
});

describe('a text that a tokenizer without an unknown token cannot encode', () => {
  it.each([1, 2])('is an error of the tokenizer, in %i threads', async (threads) => {
    // It knows the line that it is tested with.
    const line = "The quick brown fox, it's 1984! naïve café — 日本語 🙂 <s> </s> \0 a";
    const vocab = ['</s>', ...new Set([...line, '\n', '\t'])].map((token) => [token, -3]);
    const json = tokenizerJson({ type: 'Unigram', unk_id: null, vocab });
    const error = await failure(manifestOf(json, ['the river', 'жизнь'], threads), 'TOKENIZER_INVALID');
    expect(error.message).toContain('tokenizer.json, encoding: expected a token for every part of the text');
  });
});
