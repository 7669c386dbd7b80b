import { JobSpec, type DeepPartial } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { parseJobSpec } from '../../server/dist/api/jobSpec.js';
import { toSpec } from '../../server/dist/api/toProto.js';
import { readConfig } from '../../server/dist/config.js';
import type { DatasetHead } from '../../server/dist/datasets/dataset.js';

const limits = readConfig({});

/** A data set of bytes, or with another tokenizer. */
function dataset(id: string, trainTokens: number, heldOutTokens: number, sha256 = 'bytes'): DatasetHead {
  const size = (tokenCount: number) => ({ tokenCount, documentCount: 1, textBytes: tokenCount });
  return {
    ...{
      id,
      displayName: '',
      labels: {},
      owner: '',
      state: 'ready',
      failure: null,
      preparedRatio: 1,
      createTimeMs: 0,
    },
    ...{ deleteTimeMs: null, purgeTimeMs: null },
    prepared: {
      tokenizer: { kind: 'bytes', vocabularySize: 257, endOfTextId: 256, sha256 },
      train: size(trainTokens),
      heldOut: size(heldOutTokens),
      manifestSha256: 'a'.repeat(64),
    },
  };
}

const known = new Map(
  [
    dataset('tales', 1_000_000, 5000),
    dataset('news', 100_000, 70_000),
    dataset('tests', 500, 900),
    dataset('other', 100_000, 900, 'another'),
  ].map((each) => [`datasets/${each.id}`, each]),
);

function parse(changes: DeepPartial<JobSpec>) {
  const spec = JobSpec.fromPartial({
    model: { preset: 'demo' },
    stepCount: 400,
    adapter: { rank: 16, cycleStepCount: 100 },
    ...changes,
  });
  return parseJobSpec(spec, { dataset: undefined, mixture: known, baseWeights: null }, limits);
}

function part(name: string, weight?: number) {
  return weight === undefined ? { dataset: `datasets/${name}` } : { dataset: `datasets/${name}`, weight };
}

describe('masked documents', () => {
  const chats = dataset('chats', 100_000, 900);
  chats.prepared!.train.endsWithinCount = 12;
  known.set('datasets/chats', chats);

  it('are refused where the token that ends a text stands within chats, and not where nothing of them is read', () => {
    const batch = { maskDocuments: true };
    expect(parse({ mixture: [part('tales'), part('chats')], batch }).problems).toEqual([
      expect.objectContaining({
        field: 'spec.batch.mask_documents',
        expected: expect.stringMatching(/^false with datasets\/chats, .*\(12 times\)/),
        got: 'true',
      }),
    ]);
    expect(parse({ dataset: 'datasets/chats', batch }).problems).toHaveLength(1);
    expect(parse({ mixture: [part('tales'), part('chats', 0)], batch }).problems).toEqual([]);
    expect(parse({ mixture: [part('tales'), part('chats')] }).problems).toEqual([]);
  });
});

describe('a mixture', () => {
  it('has its first data set as the one that decides the tokenizer, and comes back as it is', () => {
    const { spec, problems } = parse({ mixture: [part('tales', 3), part('news'), part('tests', 0)] });
    expect(problems).toEqual([]);
    expect(spec).toMatchObject({
      dataset: 'datasets/tales',
      mixture: [part('tales', 3), part('news', 1), part('tests', 0)],
      // The largest held-out part: each is evaluated as a whole.
      evaluation: { finalTokenCount: 70_000 },
    });
    const again = parseJobSpec(
      JobSpec.fromPartial(toSpec(spec!)),
      { dataset: undefined, mixture: known, baseWeights: null },
      limits,
    );
    expect(again.spec).toEqual(spec);
  });

  it('of one data set is that data set', () => {
    expect(parse({ mixture: [part('tales', 5)] }).spec).toEqual(parse({ dataset: 'datasets/tales' }).spec);
  });

  it('warns of each data set that is read more than once, or that nothing of is held out', () => {
    const { warnings } = parse({ mixture: [part('tales', 1), part('news', 1)], stepCount: 400 });
    expect(warnings.map(({ message }) => message)).toEqual([
      expect.stringMatching(/^The run reads the training part of datasets\/tales 2\.0 times/),
      expect.stringMatching(/^The run reads the training part of datasets\/news 20\.5 times/),
    ]);
  });

  it('with end_of_data STOP has as many steps as the first of its data sets to end', () => {
    const stop = { endOfData: 'END_OF_DATA_STOP', warmStart: { stepCount: 0 } } as const;
    // 195 sequences of news are a quarter of all, which gives 780, at 16 per step.
    const { problems } = parse({ ...stop, mixture: [part('tales', 3), part('news', 1)] });
    expect(problems).toMatchObject([{ field: 'spec.step_count', got: '400' }]);
    expect(problems[0]!.expected).toMatch(/^at most 48: with end_of_data STOP/);
    const mixture = [part('tales', 3), part('news', 1)];
    const adapter = { rank: 16, cycleStepCount: 12 };
    expect(parse({ ...stop, mixture, adapter, stepCount: 48 }).problems).toEqual([]);
  });

  const wrong: [what: string, changes: DeepPartial<JobSpec>, field: string, expected: RegExp][] = [
    ['a negative weight', { mixture: [part('tales'), part('news', -1)] }, '[1].weight', /from 0/],
    ['a weight that is no number', { mixture: [part('tales', NaN), part('news')] }, '[0].weight', /from 0/],
    ['an infinite weight', { mixture: [part('tales', Infinity), part('news')] }, '[0].weight', /from 0/],
    ['weights that sum to nothing', { mixture: [part('tales', 0), part('news', 0)] }, '', /a weight above 0/],
    ['an unknown data set', { mixture: [part('tales'), part('lost')] }, '[1].dataset', /that exists/],
    ['a name that is none', { mixture: [part('tales'), part('x/y')] }, '[1].dataset', /datasets\/\{/],
    ['a data set twice', { mixture: [part('tales'), part('tales', 2)] }, '[1].dataset', /each data set once/],
    [
      'another tokenizer',
      { mixture: [part('tales'), part('other')] },
      '[1].dataset',
      /tokenizer of datasets\/tales/,
    ],
    ['too many', { mixture: Array.from({ length: 33 }, () => part('tales')) }, '', /at most 32 entries/],
  ];

  it.each(wrong)('is refused with %s', (_what, changes, field, expected) => {
    const problems = parse(changes).problems.filter((problem) => problem.field === `spec.mixture${field}`);
    expect(problems.map((problem) => problem.expected)).toEqual([expect.stringMatching(expected)]);
  });

  it('is refused beside another data set, and with a training part shorter than a sequence', () => {
    const mixture = [part('tales'), part('news')];
    expect(parse({ dataset: 'datasets/news', mixture }).problems).toMatchObject([
      { field: 'spec.dataset', expected: expect.stringMatching(/its first data set/) as string },
    ]);
    expect(parse({ dataset: 'datasets/tales', mixture }).problems).toEqual([]);
    expect(parse({ mixture: [part('tales'), part('tests', 1)] }).problems).toMatchObject([
      {
        field: 'spec.batch.sequence_length',
        expected: expect.stringMatching(/^less than 500, .*tests$/) as string,
      },
    ]);
  });
});
