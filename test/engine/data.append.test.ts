import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { appendDataset, Dataset } from '@relora/engine/data';
import { dataFolder, failure, sentences } from './dataFixtures.js';

const { source, prepare, path } = dataFolder();
const limits = { shardBytesMax: 1000 };

describe('a data set that appends to another', () => {
  it('has the tokens, documents and held-out texts of both, and leaves the base as it was', async () => {
    const options = {
      limits,
      heldOutShare: 0.2,
      tokenizer: { kind: 'trainedBpe', vocabularySize: 300 },
    } as const;
    const lines = (from: number, to: number) =>
      sentences(to)
        .split('\n')
        .slice(from)
        .map((text, index) => JSON.stringify({ text: `${from + index} ${text}` }))
        .join('\n');
    const base = await prepare([source('base.jsonl', lines(0, 60), 'jsonl')], options);
    const tokenizerJson = readFileSync(join(base, 'tokenizer.json'), 'utf8');
    const added = await prepare([source('added.jsonl', lines(60, 100), 'jsonl')], {
      ...options,
      tokenizer: { kind: 'huggingFace', tokenizerJson },
    });
    const before = readFileSync(join(base, 'manifest.json'), 'utf8');
    const [one, two] = [
      await Dataset.open(base, { verify: true }),
      await Dataset.open(added, { verify: true }),
    ];
    const tokensOf = ({ train, heldOut }: Dataset) =>
      [train, heldOut].map((split) => [...split.read(0, split.tokenCount)]);
    const [ofOne, ofTwo] = [tokensOf(one), tokensOf(two)];
    const texts = [base, added].map((folder) => readFileSync(join(folder, 'held-out.txt'), 'utf8'));
    await Promise.all([one.close(), two.close()]);

    const both = path('both');
    await appendDataset(base, added, both);
    const whole = await Dataset.open(both, { verify: true });
    expect(tokensOf(whole)).toEqual(ofOne.map((tokens, index) => [...tokens, ...ofTwo[index]!]));
    expect(readFileSync(join(both, 'held-out.txt'), 'utf8')).toBe(texts.join(''));
    expect(whole.manifest).toMatchObject({
      tokenizer: one.manifest.tokenizer,
      train: { documents: one.manifest.train.documents + two.manifest.train.documents },
      sources: [{ name: 'base.jsonl' }, { name: 'added.jsonl' }],
    });
    expect(readFileSync(join(base, 'manifest.json'), 'utf8')).toBe(before);
    const again = await Dataset.open(base, { verify: true });
    expect(tokensOf(again)).toEqual(ofOne);
    // Unchanged data is not stored twice.
    const shard = again.manifest.train.shards[0]!.file;
    expect(statSync(join(both, shard)).ino).toBe(statSync(join(base, shard)).ino);
    await Promise.all([whole.close(), again.close()]);
  });

  it('appends prompts to prompts, with what is learned of each', async () => {
    const pairs = (word: string) =>
      Array.from({ length: 9 }, (_, i) =>
        JSON.stringify({ ask: `${word} ${i}?`, say: `${i} ${word}.` }),
      ).join('\n');
    const options = { limits, pairFields: { prompt: 'ask', completion: 'say' } };
    const base = await prepare([source('ask.jsonl', pairs('base'), 'jsonl')], options);
    const added = await prepare([source('more.jsonl', pairs('more'), 'jsonl')], options);
    const trainedOf = async (folder: string) => {
      const dataset = await Dataset.open(folder, { verify: true });
      const targets = dataset.train.read(0, dataset.train.tokenCount);
      dataset.train.mask(0, targets);
      await dataset.close();
      return [...targets];
    };
    const both = [...(await trainedOf(base)), ...(await trainedOf(added))];
    const { train } = await appendDataset(base, added, path('both-pairs'));
    expect(await trainedOf(path('both-pairs'))).toEqual(both);
    expect(train.trained!.tokens).toBe(both.filter((target) => target !== -1).length);
  });

  it('is refused with another tokenizer', async () => {
    const base = await prepare([source('bytes.txt', sentences(30), 'text')]);
    const added = await prepare([source('bpe.txt', sentences(30), 'text')], {
      tokenizer: { kind: 'trainedBpe', vocabularySize: 300 },
    });
    const error = await failure(appendDataset(base, added, path('none')), 'DATASET_CORRUPT');
    expect(error.message).toContain('expected tokenizer');
  });
});
