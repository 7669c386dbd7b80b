import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  Dataset,
  heldOutTextFile,
  prepareDataset,
  type DatasetManifest,
  type PrepareOptions,
} from '@relora/engine/data';
import { dataFolder, failure, sentences } from './dataFixtures.js';

const { source, prepare, path } = dataFolder();

const manifestOf = (folder: string) =>
  JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as DatasetManifest;

async function textOf(folder: string, split: 'train' | 'heldOut'): Promise<string[]> {
  const dataset = await Dataset.open(folder, { verify: true });
  const tokens = Array.from(await dataset[split].read(0, dataset[split].tokenCount));
  const documents: string[] = [];
  for (let start = 0; start < tokens.length;) {
    const end = tokens.indexOf(dataset.tokenizer.endOfTextId, start);
    documents.push(await dataset.tokenizer.decode(tokens.slice(start, end)));
    start = end + 1;
  }
  await dataset.close();
  return documents;
}

describe('a prepared data set', () => {
  it('holds every document once, each followed by the end of a text', async () => {
    const texts = Array.from({ length: 300 }, (_, index) => `${index}: ${sentences(index % 5)}é`);
    const lines = source('lines.jsonl', texts.map((text) => JSON.stringify({ text })).join('\n'), 'jsonl');
    const plain = source('plain.txt', sentences(50), 'text', 'train');
    const held = source('held.txt', 'only for evaluation', 'text', 'heldOut');
    const empty = source('empty.txt', '', 'text');
    for (const tokenizer of [
      { kind: 'bytes' },
      { kind: 'trainedBpe', vocabularySize: 280 },
    ] as PrepareOptions['tokenizer'][]) {
      const folder = await prepare([lines, plain, empty, held], { tokenizer, heldOutShare: 0.2 });
      const [train, heldOut] = [await textOf(folder, 'train'), await textOf(folder, 'heldOut')];
      expect([...train, ...heldOut].sort()).toEqual([...texts, sentences(50), 'only for evaluation'].sort());
      expect(heldOut.at(-1)).toBe('only for evaluation');
      expect(heldOut.length).toBeGreaterThan(30);
      expect(heldOut.length).toBeLessThan(90);
      expect(readFileSync(join(folder, heldOutTextFile), 'utf8')).toBe(heldOut.join(''));

      const manifest = manifestOf(folder);
      expect(manifest.heldOut).toMatchObject({
        documents: heldOut.length,
        bytes: Buffer.byteLength(heldOut.join('')),
      });
      expect(manifest.train).toMatchObject({
        documents: train.length,
        bytes: Buffer.byteLength(train.join('')),
      });
      expect(manifest.sources.map(({ name }) => name)).toEqual([
        'lines.jsonl',
        'plain.txt',
        'empty.txt',
        'held.txt',
      ]);
      expect(manifest.sources[0]!.sha256).toBe(
        createHash('sha256').update(readFileSync(lines.path)).digest('hex'),
      );
    }
  });

  it('is the same, byte for byte, when it is made again', async () => {
    const files = [
      source('again.txt', sentences(3000), 'text'),
      source('other.txt', sentences(100, 3), 'text'),
    ];
    const options = { tokenizer: { kind: 'trainedBpe' as const, vocabularySize: 320 }, heldOutShare: 0.1 };
    const [first, second] = [await prepare(files, options), await prepare(files, options)];
    expect(readdirSync(first).sort()).toEqual([
      'held-out-00000.bin',
      'held-out.txt',
      'manifest.json',
      'sources.json',
      'tokenizer.json',
      'train-00000.bin',
    ]);
    for (const name of readdirSync(first))
      expect(readFileSync(join(second, name)).equals(readFileSync(join(first, name)))).toBe(true);
  });

  it('of one document holds out its end, cut where a word begins', async () => {
    for (const text of [sentences(20_000), sentences(3), 'one two', '日本語', `${'x'.repeat(999)}🙂`]) {
      const folder = await prepare([source('single.txt', text, 'text')], { heldOutShare: 0.25 });
      const [[train = ''], [heldOut = '']] = [await textOf(folder, 'train'), await textOf(folder, 'heldOut')];
      expect(train + heldOut === text).toBe(true);
      if (text.length > 100 && text.includes(' ')) {
        expect(heldOut).toMatch(/^\s/);
        expect(Math.abs(heldOut.length - 0.25 * text.length)).toBeLessThan(30);
      }
    }
  });

  it('of two documents has one in each part, whatever the seed', async () => {
    const files = [source('one.txt', 'one', 'text'), source('two.txt', 'two', 'text')];
    const heldOut = new Set<string>();
    for (let seed = 0; seed < 12; seed++) {
      for (const heldOutShare of [0.001, 0.5]) {
        const folder = await prepare(files, { heldOutShare, seed });
        expect(await textOf(folder, 'train')).toHaveLength(1);
        heldOut.add((await textOf(folder, 'heldOut')).join());
      }
    }
    expect([...heldOut].sort()).toEqual(['one', 'two']);
  });

  it('is divided into shards that read as one', async () => {
    const files = [source('shards.txt', sentences(300), 'text')];
    const whole = await prepare(files);
    const small = await prepare(files, { limits: { shardBytesMax: 1001 } });
    const { shards } = manifestOf(small).train;
    expect(shards.length).toBeGreaterThan(20);
    expect(shards.slice(0, -1).every(({ tokens }) => tokens === 500)).toBe(true);
    const [a, b] = [await Dataset.open(whole, { verify: true }), await Dataset.open(small, { verify: true })];
    for (const [position, count] of [
      [0, b.train.tokenCount],
      [499, 2],
      [500, 1],
      [123, 4567],
      [b.train.tokenCount, 0],
    ] as const) {
      expect(b.train.read(position, count)).toEqual(a.train.read(position, count));
    }
    expect(() => b.train.read(b.train.tokenCount, 1)).toThrow(RangeError);
    await Promise.all([a.close(), b.close()]);
  });

  it('trains its vocabulary on the training part alone', async () => {
    const train = source('train.txt', sentences(2000), 'text', 'train');
    const of = async (heldOutText: string) => {
      const held = source('held-out-source.txt', heldOutText, 'text', 'heldOut');
      return manifestOf(
        await prepare([train, held], { tokenizer: { kind: 'trainedBpe', vocabularySize: 300 } }),
      ).tokenizer.sha256;
    };
    expect(await of('zyx '.repeat(10_000))).toBe(await of('qqq '.repeat(9)));
  });

  it('shows its first tokens as the model sees them', async () => {
    const dataset = await Dataset.open(await prepare([source('short.txt', 'hé\0', 'text')]), {
      verify: false,
    });
    expect(await dataset.preview('train', 10)).toEqual([
      { id: 0x68, text: 'h', trained: true },
      { id: 0xc3, text: '\\xc3', trained: true },
      { id: 0xa9, text: '\\xa9', trained: true },
      { id: 0, text: '\0', trained: true },
      { id: 256, text: '<end of text>', trained: true },
    ]);
    expect(await dataset.preview('heldOut', 10)).toEqual([]);
    await dataset.close();
  });
});

describe('preparation', () => {
  it('without training text fails', async () => {
    const held = source('h.txt', 'held', 'text', 'heldOut');
    const error = await failure(prepare([source('e.txt', '', 'text'), held]), 'DATASET_EMPTY');
    expect(error.message).toBe('The training part has no text: 2 files were read, 1 documents are held out');
    const trained = { tokenizer: { kind: 'trainedBpe', vocabularySize: 300 } } as const;
    await failure(prepare([held], trained), 'DATASET_EMPTY'); // the vocabulary is not the problem
    await failure(prepare([source('blank.jsonl', '\n\n{"text":""}', 'jsonl')]), 'DATASET_EMPTY');
  });

  it('refuses options out of their ranges', async () => {
    const file = source('o.txt', sentences(10), 'text');
    const message = async (options: Partial<PrepareOptions>, files = [file]) =>
      (await failure(prepare(files, options), 'OPTIONS_INVALID')).message;
    expect(await message({}, [])).toBe('files: expected at least one, got 0');
    expect(await message({ heldOutShare: 0.6 })).toBe('heldOutShare: expected 0 to 0.5, got 0.6');
    expect(await message({ heldOutShare: NaN })).toContain('heldOutShare');
    expect(await message({ seed: 0.5 })).toContain('seed');
    expect(await message({ textField: '' })).toContain('textField');
    for (const vocabularySize of [256, 30_001, 300.5]) {
      expect(await message({ tokenizer: { kind: 'trainedBpe', vocabularySize } })).toContain(
        'tokenizer.vocabularySize: expected 257 to 30000',
      );
    }
    expect(await message({}, [{ ...file, format: 'xml' as 'text' }])).toContain('files.format');
    expect(await message({}, [{ ...file, split: 'test' as 'auto' }])).toContain('files.split');
  });

  it('says how large a vocabulary its text gives', async () => {
    const error = await failure(
      prepare([source('v.txt', 'ab ab', 'text')], {
        tokenizer: { kind: 'trainedBpe', vocabularySize: 5000 },
      }),
      'VOCABULARY_TOO_LARGE',
    );
    expect(error.detail).toEqual({ asked: 5000, max: 259 });
  });

  it('can be stopped, and then leaves no manifest', async () => {
    const abort = new AbortController();
    const outputFolder = path('stopped');
    const files = [source('s.txt', sentences(60_000), 'text')];
    const options = {
      files,
      outputFolder,
      tokenizer: { kind: 'bytes' as const },
      textField: 'text',
      heldOutShare: 0,
      seed: 1,
    };
    const shares: number[] = [];
    const stop = (share: number) => {
      shares.push(share);
      if (share > 0.2) abort.abort(new Error('stopped'));
    };
    await expect(prepareDataset(options, stop, abort.signal)).rejects.toThrow('stopped');
    expect(readdirSync(outputFolder)).not.toContain('manifest.json');
    expect(shares).toEqual([...shares].sort((a, b) => a - b));
  });
});

describe('a damaged data set', () => {
  const prepared = () => prepare([source('d.txt', sentences(50), 'text')], { heldOutShare: 0.1 });
  const message = async (folder: string, verify = true) =>
    (await failure(Dataset.open(folder, { verify }), 'DATASET_CORRUPT')).message;

  it('is refused, with the file, what was expected and what came', async () => {
    const cut = await prepared();
    truncateSync(join(cut, 'train-00000.bin'), 10);
    expect(await message(cut, false)).toMatch(/train-00000\.bin: expected \d+ bytes, got 10$/);

    const flipped = await prepared();
    const bytes = readFileSync(join(flipped, 'train-00000.bin'));
    bytes[100]! ^= 1;
    writeFileSync(join(flipped, 'train-00000.bin'), bytes);
    expect(await message(flipped)).toMatch(
      /train-00000\.bin: expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}$/,
    );

    const tokenizer = await prepared();
    writeFileSync(join(tokenizer, 'tokenizer.json'), '{}');
    expect(await message(tokenizer, false)).toContain('tokenizer.json: expected SHA-256');

    const missing = await prepared();
    renameSync(join(missing, 'held-out-00000.bin'), join(missing, 'elsewhere'));
    expect(await message(missing, false)).toContain('held-out-00000.bin: expected a file, got none');

    const without = await prepared();
    rmSync(join(without, 'manifest.json'));
    expect(await message(without)).toContain('manifest.json: expected a readable file, got ENOENT');
  });

  it('is refused for a manifest that says what cannot be', async () => {
    const folder = await prepared();
    const good = manifestOf(folder);
    const withManifest = async (change: (manifest: DatasetManifest) => unknown) => {
      const manifest = structuredClone(good);
      change(manifest);
      writeFileSync(join(folder, 'manifest.json'), JSON.stringify(manifest));
      return message(folder);
    };
    expect(await withManifest((m) => (m.train.shards[0]!.file = '../../etc/passwd'))).toContain(
      'train.shards.file',
    );
    expect(await withManifest((m) => m.train.tokens++)).toContain('tokens in train.shards');
    expect(await withManifest((m) => (m.tokenBytes = 3))).toContain('tokenBytes of 2 or 4, got 3');
    expect(await withManifest((m) => (m.heldOut.bytes = -1))).toContain('a count heldOut.bytes, got -1');
    expect(await withManifest((m) => (m.tokenizer.vocabularySize = 9))).toContain(
      'expected 257 tokens'.replace('257', '9'),
    );
    expect(await withManifest((m) => (m.tokenizer.kind = 'words' as 'bytes'))).toContain(
      'a kind of tokenizer',
    );
    writeFileSync(join(folder, 'manifest.json'), '{');
    expect(await message(folder)).toContain('manifest.json: expected JSON');
    writeFileSync(join(folder, 'manifest.json'), JSON.stringify({ ...good, formatVersion: 3 }));
    await failure(Dataset.open(folder, { verify: true }), 'DATASET_FORMAT_UNKNOWN');
  });
});
