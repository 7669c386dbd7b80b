import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parquetWriteBuffer } from 'hyparquet-writer';
import {
  Batches,
  Dataset,
  idleSequenceShare,
  idleSequencesText,
  type DatasetManifest,
} from '@relora/engine/data';
import { dataFolder, failure } from './dataFixtures.js';

const { source, prepare } = dataFolder();
const pairFields = { prompt: 'prompt', completion: 'completion' };
const pairs = Array.from({ length: 40 }, (_, i) => ({
  prompt: i === 3 ? '' : `Q${i}? `,
  completion: `yes ${i * i}`,
}));
const jsonl = () => source('pairs.jsonl', pairs.map((pair) => JSON.stringify(pair)).join('\n'), 'jsonl');
const end = 256;

describe('pairs of prompt and completion', () => {
  it('train on completions and ends of text alone, over shards, from JSONL and Parquet', async () => {
    const parquet = parquetWriteBuffer({
      columnData: [
        { name: 'prompt', data: pairs.map(({ prompt }) => prompt), type: 'STRING' },
        { name: 'completion', data: pairs.map(({ completion }) => completion), type: 'STRING' },
      ],
    });
    const expected = pairs.flatMap(({ prompt, completion }) => [
      ...Array.from(Buffer.from(prompt), () => -1),
      ...Buffer.from(completion),
      end,
    ]);
    for (const file of [jsonl(), source('pairs.parquet', Buffer.from(parquet), 'parquet')]) {
      const dataset = await Dataset.open(
        await prepare([file], { pairFields, limits: { shardBytesMax: 74 } }),
        {
          verify: true,
        },
      );
      const { manifest, train } = dataset;
      expect(manifest.train.shards.length).toBeGreaterThan(5);
      expect(manifest.train.trained!.tokens).toBe(expected.filter((target) => target !== -1).length);
      for (const [from, to] of [
        [0, expected.length],
        [1, 2],
        [35, 40],
        [70, 300],
      ] as const) {
        const targets = train.read(from, to - from);
        train.mask(from, targets);
        expect([...targets]).toEqual(expected.slice(from, to));
      }
      const preview = await dataset.preview('train', 12);
      expect(preview.map(({ trained }) => trained)).toEqual(expected.slice(0, 12).map((id) => id !== -1));

      const batches = new Batches(train, { sequenceLength: 9, seed: 4, cut: 2, endOfTextId: 256 });
      const used = batches.sequencesPerEpoch * 9;
      // The second pass wraps around from the end of the data to its beginning.
      for (const epoch of [0, 1]) {
        const { inputs, targets } = await batches.read(
          epoch * batches.sequencesPerEpoch,
          batches.sequencesPerEpoch,
        );
        expect(targets.every((target, i) => i % 9 === 8 || target === -1 || target === inputs[i + 1])).toBe(
          true,
        );
        const wanted = Array.from(
          { length: used },
          (_, i) => expected[(epoch * used + 1 + i) % expected.length],
        );
        expect([...targets].sort()).toEqual(wanted.sort());
      }
      await dataset.close();
    }
  });

  it('are evaluated on the completions, whose bytes alone count', async () => {
    const held = source(
      'held.jsonl',
      JSON.stringify({ prompt: 'x'.repeat(50), completion: 'né' }),
      'jsonl',
      'heldOut',
    );
    const dataset = await Dataset.open(await prepare([jsonl(), held], { pairFields }), { verify: true });
    for (const tokenCount of [0, 8]) {
      let [targets, bytes] = [0, 0];
      // The first eight tokens belong to the prompt: reading continues until one counts.
      for await (const batch of dataset.heldOutBatches({ sequenceLength: 4, sequenceCount: 1, tokenCount })) {
        targets += batch.targets.filter((target) => target !== -1).length;
        bytes += batch.byteCount;
      }
      expect(targets).toBeGreaterThan(0);
      if (tokenCount === 0) expect([targets, bytes]).toEqual([4, 3]);
    }
    await dataset.close();
  });

  it('without a completion, as a chat or as text are refused', async () => {
    const bad = async (line: object) =>
      (
        await failure(
          prepare([source('bad.jsonl', JSON.stringify(line), 'jsonl')], { pairFields }),
          'FIELD_MISSING',
        )
      ).message;
    expect(await bad({ prompt: 'x', completion: '' })).toContain('expected text in "completion", got ""');
    expect(await bad({ messages: [] })).toContain(
      'the "messages" of a chat are read where messages_field names them',
    );
    await failure(prepare([source('t.txt', 'text', 'text')], { pairFields }), 'OPTIONS_INVALID');
  });
});

describe('what is held out', () => {
  it('is never trained on: documents with its text are taken out of training and counted', async () => {
    const long = 'long words '.repeat(150_000); // longer than what is compared in memory
    const texts = Array.from({ length: 300 }, (_, i) => `document ${i % 60}`);
    const lines = source(
      'l.jsonl',
      [...texts, long, long].map((text) => JSON.stringify({ text })).join('\n'),
      'jsonl',
    );
    const held = source('h.txt', long, 'text', 'heldOut');
    const folder = await prepare([lines, held], { heldOutShare: 0.05 });
    const dataset = await Dataset.open(folder, { verify: true });
    const documents = async (split: 'train' | 'heldOut') =>
      Buffer.from(
        (await dataset[split].read(0, dataset[split].tokenCount)).map((id) => (id === end ? 0 : id)),
      )
        .toString()
        .split('\0')
        .slice(0, -1);
    const [train, heldOut] = [await documents('train'), await documents('heldOut')];
    expect(heldOut).toContain(long);
    expect(heldOut.length).toBeGreaterThan(5);
    expect(train.filter((text) => heldOut.includes(text))).toEqual([]);
    const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as DatasetManifest;
    expect(train.length + heldOut.length + manifest.train.duplicates!).toBe(303);
    expect(manifest.train.duplicates).toBeGreaterThan(5);
    await dataset.close();
  });

  it('may be all there is, and then nothing is left to train on', async () => {
    const same = source('same.jsonl', '{"text":"x"}\n{"text":"x"}', 'jsonl');
    const error = await failure(prepare([same], { heldOutShare: 0.5 }), 'DATASET_EMPTY');
    expect(error.message).toContain('1 had the same text');
  });
});

describe('prompts that are longer than a sequence', () => {
  const long = Array.from({ length: 30 }, (_, i) => ({
    prompt: `${'why '.repeat(70)}${i}?`,
    completion: 'so.',
  }));
  const file = () => source('long.jsonl', long.map((pair) => JSON.stringify(pair)).join('\n'), 'jsonl');

  it('leave sequences without anything to learn, whose share is reported for every length', async () => {
    const dataset = await Dataset.open(await prepare([file()], { pairFields }), { verify: true });
    for (const sequenceLength of [16, 64, 100, 301, 4000]) {
      const batches = new Batches(dataset.train, { sequenceLength, seed: 1, cut: 1, endOfTextId: 256 });
      const { targets } = await batches.read(0, batches.sequencesPerEpoch);
      let idle = 0;
      for (let first = 0; first < targets.length; first += sequenceLength)
        if (targets.subarray(first, first + sequenceLength).every((target) => target === -1)) idle++;
      expect(await idleSequenceShare(dataset.train, sequenceLength)).toBe(idle / batches.sequencesPerEpoch);
    }
    const share = Math.round(100 * (await idleSequenceShare(dataset.train, 64)));
    expect(share).toBeGreaterThan(50);
    expect(await idleSequencesText(dataset.train)).toMatch(
      new RegExp(
        `^Prompts are long: of sequences of 64 tokens ${share} %, of 128 tokens .* with a sequence_length of 512`,
      ),
    );
    await dataset.close();
    const short = await Dataset.open(await prepare([jsonl()], { pairFields }), { verify: true });
    expect(await idleSequencesText(short.train)).toBeNull();
    await short.close();
  });
});
