import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { beginRun, disposeRun, MixtureOrder, openDevice, passesOf, specHash } from '@relora/engine';
import { Dataset, TrainingData } from '@relora/engine/data';
import { dataFolder } from './dataFixtures.js';
import { interrupted, ofKind, runLoop, temporaryFolders, tinySpec, reported } from './tinyRun.js';

const { source, prepare } = dataFolder();
const folder = temporaryFolders();

describe('the order of a mixture', () => {
  const mixtures: [weights: number[], shares: number[]][] = [
    [
      [7, 3],
      [0.7, 0.3],
    ],
    [
      [1, 1, 1],
      [1 / 3, 1 / 3, 1 / 3],
    ],
    [
      [0.5, 0, 0.2, 0.3],
      [0.5, 0, 0.2, 0.3],
    ],
    [
      [1, 1e-4],
      [1 / 1.0001, 1e-4 / 1.0001],
    ],
    [
      Array.from({ length: 32 }, (_, index) => index + 1),
      Array.from({ length: 32 }, (_, i) => (i + 1) / 528),
    ],
  ];

  it.each(mixtures)(
    'with weights %j takes each next sequence of each data set once, at its share all the way',
    (weights, shares) => {
      const order = new MixtureOrder(weights, 5);
      const counts = weights.map(() => 0);
      for (let sequence = 0; sequence < 20_000; sequence++) {
        const { part, index } = order.placeOf(sequence);
        expect(index).toBe(counts[part]!++);
        for (const [i, count] of counts.entries())
          if (Math.abs(count - shares[i]! * (sequence + 1)) > 3)
            expect.fail(`${i} has ${count} of ${sequence + 1}`);
      }
      expect(order.countsIn(20_000)).toEqual(counts);
    },
  );

  it('is exact however far a run has come', () => {
    const order = new MixtureOrder([0.61, 0.29, 0.1], 3);
    const start = 65_536 * 1e9 - 500; // a billion steps of the largest batch
    const counts = order.countsIn(start);
    expect(counts.reduce((sum, count) => sum + count)).toBe(start);
    for (let sequence = start; sequence < start + 500; sequence++) {
      const { part, index } = order.placeOf(sequence);
      expect(index).toBe(counts[part]!++);
    }
    expect(counts[0]! / (start + 500)).toBeCloseTo(0.61, 6);
  });

  it('depends on seed and weights alone, and on nothing that was read before', () => {
    const placesOf = (weights: number[], seed: number, sequences: number[]) => {
      const order = new MixtureOrder(weights, seed);
      return sequences.map((sequence) => order.placeOf(sequence));
    };
    const some = [900, 3, 77, 3, 512];
    const all = placesOf(
      [2, 1, 1],
      8,
      Array.from({ length: 1000 }, (_, index) => index),
    );
    expect(placesOf([2, 1, 1], 8, some)).toEqual(some.map((sequence) => all[sequence]));
    expect(placesOf([4, 2, 2], 8, some)).toEqual(some.map((sequence) => all[sequence]));
    const digest = (seed: number) =>
      createHash('sha256')
        .update(
          placesOf(
            [2, 1, 1],
            seed,
            Array.from({ length: 1000 }, (_, index) => index),
          )
            .map(({ part }) => part)
            .join(''),
        )
        .digest('hex')
        .slice(0, 16);
    expect(digest(9)).not.toBe(digest(8));
    // A mixture is trained to its end in the order in which it began, with any later version of the engine.
    expect(digest(8)).toBe('26549c7f890b7567');
  });

  it('counts the passes over each data set', () => {
    const parts = [
      { weight: 3, tokenCount: 1001 },
      { weight: 1, tokenCount: 2001 },
      { weight: 0, tokenCount: 50 },
    ];
    const passes = passesOf(parts, 0, 400, 10);
    expect(passes[0]).toBeCloseTo(3, 1);
    expect(passes[1]).toBeCloseTo(0.5, 1);
    expect(passes[2]).toBe(0);
    expect(passesOf([{ weight: 1, tokenCount: 101 }], 0, 25, 10)).toEqual([2.5]);
  });
});

describe('a run on a mixture', () => {
  const mixture = [
    { dataset: 'datasets/a', weight: 3 },
    { dataset: 'datasets/b', weight: 1 },
    { dataset: 'datasets/c', weight: 0 },
  ];
  const text = (word: string, lines: number) =>
    Array.from({ length: lines }, (_, index) => `${word} ${index * 7919} ${word}\n`).join('');

  async function opened(): Promise<Dataset[]> {
    const folders = [
      await prepare([source('a.txt', text('alpha', 150), 'text')], { heldOutShare: 0.2 }),
      await prepare([source('b.txt', text('beta', 90), 'text')], { heldOutShare: 0.2 }),
      await prepare([source('c.txt', text('gamma', 60), 'text')], { heldOutShare: 0.2 }),
    ];
    return await Promise.all(folders.map(async (path) => await Dataset.open(path, { verify: true })));
  }

  it('reads the same sequences whatever the sizes of the batches, and none of a data set without a weight', async () => {
    const sources = await opened();
    const spec = tinySpec({ mixture, batch: { sequenceLength: 16, sequenceCount: 4 } });
    const data = new TrainingData(spec, sources);
    const whole = await data.batches().read(0, 96);
    const inputs: number[] = [];
    for (const [first, count] of [
      [0, 5],
      [5, 1],
      [6, 90],
    ] as const)
      inputs.push(...(await data.batches().read(first, count)).inputs);
    expect(inputs).toEqual([...whole.inputs]);
    const sequences = Array.from({ length: 96 }, (_, index) =>
      Buffer.from(whole.inputs.subarray(16 * index, 16 * index + 16)).toString('latin1'),
    );
    expect(sequences.some((sequence) => sequence.includes('gam'))).toBe(false);
    const ofBeta = sequences.filter((sequence) => /bet|eta/.test(sequence)).length;
    expect(Math.abs(ofBeta - 24)).toBeLessThanOrEqual(3);
    for (const each of sources) await each.close();
  });

  it('says of each data set how it does and how often it was read, and a resumed one repeats the uninterrupted one', async () => {
    const sources = await opened();
    const device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
    const spec = tinySpec({ mixture, evaluation: { everyStepCount: 5 } });
    const options = { spec, device, dataset: sources[0]!, mixture: sources };
    const run = await beginRun({ ...options, runFolder: folder(), attempt: 1 });
    const whole = await runLoop(run);
    disposeRun(run);
    const evaluations = ofKind(whole, 'evaluation');
    const { datasets, loss, tokenCount } = evaluations.at(-1)!;
    expect(datasets!.map(({ dataset }) => dataset)).toEqual(mixture.map(({ dataset }) => dataset));
    expect(loss).toBeCloseTo((3 * datasets![0]!.loss + datasets![1]!.loss) / 4, 10);
    expect(tokenCount).toBe(datasets!.reduce((sum, each) => sum + each.tokenCount, 0));
    expect(datasets![2]!.loss).toBeGreaterThan(datasets![0]!.loss); // never trained on
    expect(datasets![2]!.epochs).toBe(0);
    expect(datasets![0]!.epochs).toBeGreaterThan(
      2 * datasets![1]!.epochs * (sources[1]!.train.tokenCount / sources[0]!.train.tokenCount),
    );

    const { run: resumed, events } = await interrupted(
      async (spec, more) => await beginRun({ ...options, runFolder: folder(), attempt: 1, ...more, spec }),
      spec,
      9,
    );
    disposeRun(resumed);
    const lossesOf = (of: typeof whole) => ofKind(of, 'step').map((event) => event.loss);
    expect(lossesOf(events)).toEqual(lossesOf(whole));
    expect(reported(ofKind(events, 'evaluation'))).toEqual(reported(evaluations));
    device.close();
    for (const each of sources) await each.close();
  });

  it('has another hash with other weights, and is refused with another tokenizer', async () => {
    const one = tinySpec({ mixture });
    const other = tinySpec({ mixture: mixture.map((part) => ({ ...part, weight: part.weight + 1 })) });
    expect(specHash(one, null)).not.toBe(specHash(other, null));
    expect(specHash(one, null)).not.toBe(specHash(tinySpec(), null));
    const sources = await opened();
    const odd = await Dataset.open(
      await prepare([source('d.txt', text('delta', 900), 'text')], {
        tokenizer: { kind: 'trainedBpe', vocabularySize: 300 },
      }),
      { verify: true },
    );
    const device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
    const begun = beginRun({
      ...{ spec: one, device, dataset: sources[0]!, mixture: [sources[0]!, odd, sources[2]!] },
      ...{ runFolder: folder(), attempt: 1 },
    });
    await expect(begun).rejects.toThrow('The tokenizer of datasets/b');
    device.close();
    for (const each of [...sources, odd]) await each.close();
  });
});
