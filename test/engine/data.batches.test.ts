import { renameSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Batches, Dataset, permutation } from '@relora/engine/data';
import { dataFolder, failure, sentences } from './dataFixtures.js';

const { source, prepare } = dataFolder();

describe('the order of sequences', () => {
  it('takes each once per epoch, for odd numbers of them too', () => {
    for (const length of [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097]) {
      const at = permutation(length, 9, 2);
      const seen = Array.from({ length }, (_, index) => at(index));
      expect([...seen].sort((a, b) => a - b)).toEqual(Array.from({ length }, (_, index) => index));
    }
  });

  it('reaches over more numbers than 2^31', () => {
    const length = 2 ** 31 + 12_345;
    const at = permutation(length, 1, 0);
    const seen = Array.from({ length: 2000 }, (_, index) => at(length - 1 - index));
    expect(seen.every((value) => Number.isInteger(value) && value >= 0 && value < length)).toBe(true);
    expect(new Set(seen).size).toBe(2000);
  });

  it('differs by seed and epoch, and leaves few in their places', () => {
    const length = 1000;
    const order = (seed: number, epoch: number) =>
      Array.from({ length }, (_, index) => permutation(length, seed, epoch)(index));
    const orders = [order(1, 0), order(1, 1), order(2, 0), order(1 + 2 ** 32, 0)];
    for (const [i, a] of orders.entries()) {
      expect(a.filter((value, index) => value === index).length).toBeLessThan(12);
      for (const b of orders.slice(i + 1))
        expect(a.filter((value, index) => value === b[index]).length).toBeLessThan(12);
    }
    // Neighbors are separated: the mean distance in a random order is a third of its length.
    const distances = orders[0]!.slice(1).map((value, index) => Math.abs(value - orders[0]![index]!));
    expect(
      Math.abs(distances.reduce((sum, value) => sum + value, 0) / distances.length - length / 3),
    ).toBeLessThan(40);
  });
});

describe('training batches', () => {
  it('hold each token of an epoch once as target, shifted by one from its input', async () => {
    const text = Array.from({ length: 60 }, (_, index) => String.fromCharCode(48 + index)).join('');
    const { train, close } = await opened(text); // 61 tokens including the end of the text, all different
    const batches = new Batches(train, { sequenceLength: 7, seed: 3, cut: 1, endOfTextId: 256 });
    expect(batches.sequencesPerEpoch).toBe(8);
    for (const epoch of [0, 1]) {
      const { inputs, targets, epoch: found } = await batches.read(8 * epoch, 8);
      expect(found).toBe(epoch);
      expect(targets.every((target, i) => target === inputs[i]! + 1)).toBe(true);
      expect([...targets].sort((a, b) => a - b)).toEqual(
        Array.from({ length: 56 }, (_, index) => 49 + index),
      );
    }
    await close();
  });

  it.each([56, 57, 61, 62, 63])(
    'with the second cut leave out of a pass what the next one begins with (%i tokens)',
    async (tokenCount) => {
      const letters = Array.from({ length: tokenCount - 1 }, (_, index) => String.fromCharCode(48 + index));
      const { train, close } = await opened(letters.join(''));
      const options = { sequenceLength: 7, seed: 3, endOfTextId: 256 };
      const [fixed, moving] = [1, 2].map((cut) => new Batches(train, { ...options, cut })) as [
        Batches,
        Batches,
      ];
      const { sequencesPerEpoch: count } = moving;
      expect(await moving.read(0, count)).toEqual(await fixed.read(0, count));

      // Position of a token in the text; the end of the text, 256, is the last one.
      const placeOf = (token: number) => (token === 256 ? tokenCount - 1 : token - 48);
      const learned = new Array<number>(tokenCount).fill(0);
      let leftOut: number[] = [];
      for (let epoch = 0; epoch < 3 * tokenCount; epoch++) {
        const { inputs, targets } = await moving.read(epoch * count, count);
        const places = Array.from(targets, placeOf);
        expect(places).toEqual(Array.from(inputs, (token) => (placeOf(token) + 1) % tokenCount));
        expect(new Set(places).size).toBe(7 * count);
        for (const place of leftOut) expect(places).toContain(place);
        leftOut = learned.map((_, place) => place).filter((place) => !places.includes(place));
        for (const place of places) learned[place]!++;
      }
      // All tokens are learned equally often, except for incomplete passes.
      expect(Math.max(...learned) - Math.min(...learned)).toBeLessThanOrEqual(1);
      await close();
    },
  );

  it('are the same from wherever one begins', async () => {
    const { train, close } = await opened(sentences(30));
    const of = () => new Batches(train, { sequenceLength: 16, seed: 5, cut: 2, endOfTextId: 256 });
    const whole = await of().read(0, 200); // several epochs
    for (const first of [0, 1, 57, 130, 199]) {
      const part = await of().read(first, 200 - first);
      expect(part.inputs).toEqual(whole.inputs.slice(first * 16));
      expect(part.targets).toEqual(whole.targets.slice(first * 16));
      expect(part.documents).toEqual(whole.documents.slice(first * 16));
    }
    await close();
  });

  it('know documents to begin with the token that ends the one before them, and with each sequence', async () => {
    const { train, close } = await opened('56978995678567899');
    const endOfTextId = '9'.charCodeAt(0);
    const batches = new Batches(train, { sequenceLength: 5, seed: 1, cut: 1, endOfTextId });
    const { inputs, documents } = await batches.read(0, batches.sequencesPerEpoch);
    const found = new Map<string, number[]>();
    for (let first = 0; first < inputs.length; first += 5) {
      const text = String.fromCharCode(...inputs.subarray(first, first + 5));
      found.set(text, [...documents.subarray(first, first + 5)]);
    }
    expect(Object.fromEntries(found)).toEqual({
      56978: [0, 0, 2, 2, 2],
      99567: [0, 1, 1, 1, 1],
      85678: [0, 0, 0, 0, 0],
    });
    await close();
  });

  it('can be read after a shard could not be opened, and closed in any case', async () => {
    const { dataset, close } = await opened(sentences(30));
    const shard = join(dataset.folder, dataset.manifest.train.shards[0]!.file);
    renameSync(shard, `${shard}.away`);
    expect(() => dataset.train.read(0, 4)).toThrow('ENOENT');
    renameSync(`${shard}.away`, shard);
    expect(dataset.train.read(0, 4)).toHaveLength(4);
    await close();
  });

  it('need one whole sequence', async () => {
    const { train, close } = await opened('12345678'); // 9 tokens
    expect(
      new Batches(train, { sequenceLength: 8, seed: 1, cut: 2, endOfTextId: 256 }).sequencesPerEpoch,
    ).toBe(1);
    const error = await failure(
      Promise.resolve().then(
        () => new Batches(train, { sequenceLength: 9, seed: 1, cut: 2, endOfTextId: 256 }),
      ),
      'DATASET_TOO_SHORT',
    );
    expect(error.message).toBe('Expected at least 10 tokens, one sequence of 9 and its last target, got 9');
    await close();
  });
});

describe('held-out batches', () => {
  it('predict every token once and count every byte of the text', async () => {
    for (const tokenizer of [
      { kind: 'bytes' as const },
      { kind: 'trainedBpe' as const, vocabularySize: 290 },
    ]) {
      const train = source('train.txt', sentences(400), 'text', 'train');
      const heldOut = ['naïve 🙂', sentences(9), 'x'].map((text, index) =>
        source(`h${index}.txt`, text, 'text', 'heldOut'),
      );
      const dataset = await Dataset.open(await prepare([train, ...heldOut], { tokenizer }), {
        verify: false,
      });
      const tokens = dataset.heldOut.read(0, dataset.heldOut.tokenCount);
      const shifted = [dataset.tokenizer.endOfTextId, ...tokens.slice(0, -1)];
      for (const [sequenceLength, sequenceCount] of [
        [1, 1],
        [7, 3],
        [64, 2],
        [1000, 4],
      ] as const) {
        const [inputs, targets]: [number[], number[]] = [[], []];
        let bytes = 0;
        for await (const batch of dataset.heldOutBatches({ sequenceLength, sequenceCount, tokenCount: 0 })) {
          expect(batch.inputs.length).toBe(batch.targets.length);
          expect(batch.inputs.length % sequenceLength).toBe(0);
          inputs.push(...batch.inputs);
          targets.push(...batch.targets);
          bytes += batch.byteCount;
        }
        expect(targets.slice(0, tokens.length)).toEqual([...tokens]);
        expect(targets.slice(tokens.length).every((target) => target === -1)).toBe(true);
        expect(inputs.slice(0, tokens.length)).toEqual(shifted);
        expect(bytes).toBe(dataset.manifest.heldOut.bytes);
      }
      await dataset.close();
    }
  });

  it('of a part end with a whole sequence and count its bytes', async () => {
    const train = source('t.txt', 'train', 'text', 'train');
    const dataset = await Dataset.open(
      await prepare([train, source('part.txt', 'é'.repeat(50), 'text', 'heldOut')]),
      { verify: false },
    );
    let [count, bytes] = [0, 0];
    for await (const batch of dataset.heldOutBatches({
      sequenceLength: 8,
      sequenceCount: 2,
      tokenCount: 20,
    })) {
      count += batch.targets.length;
      bytes += batch.byteCount;
    }
    expect([count, bytes]).toEqual([24, 24]);
    await dataset.close();
  });
});

async function opened(text: string) {
  const dataset = await Dataset.open(await prepare([source('text.txt', text, 'text')]), { verify: false });
  return { dataset, train: dataset.train, close: () => dataset.close() };
}
