import { beginRun, disposeRun, openDevice, type BeginRunOptions, type RunSpec } from '@relora/engine';
import { Dataset, prepareDataset } from '@relora/engine/data';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  interrupted,
  licenseDataset,
  ofKind,
  reported,
  runLoop,
  temporaryFolders,
  tinySpec,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

const questions = [
  { question: 'The License is ', choices: ['distributed', 'xyzzyx'], answer: 0 },
  { question: 'You may ', choices: ['qqqq', 'copy'], answer: 'copy' },
]
  .map((question) => JSON.stringify(question))
  .join('\n');

const named: RunSpec['evaluations'] = [
  {
    name: 'poem',
    dataset: 'datasets/poem',
    questions: '',
    tokenCount: 64,
    everyStepCount: 5,
    everySeconds: 0,
  },
  { name: 'facts', dataset: '', questions, tokenCount: 0, everyStepCount: 7, everySeconds: 0 },
];

let opened: Promise<Dataset> | undefined;
async function poem(): Promise<Dataset> {
  opened ??= (async () => {
    const folder = newFolder();
    const path = join(folder, 'poem.txt');
    writeFileSync(path, 'A line of a poem that nobody trains on, again and again.\n'.repeat(20));
    const prepared = join(folder, 'prepared');
    await prepareDataset(
      {
        files: [{ path, name: 'poem.txt', format: 'text', split: 'auto' }],
        outputFolder: prepared,
        tokenizer: { kind: 'bytes' },
        textField: 'text',
        heldOutShare: 0.2,
        seed: 1,
      },
      () => {},
      new AbortController().signal,
    );
    return await Dataset.open(prepared, { verify: true });
  })();
  return await opened;
}

async function begin(spec: RunSpec, options: Partial<BeginRunOptions> = {}) {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  return await beginRun({
    spec,
    device,
    dataset: await dataset(),
    scoredDatasets: new Map([['datasets/poem', await poem()]]),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

describe('evaluations that a job names', () => {
  it('come at the beginning, as often as asked and at the end, and change no bit of the run', async () => {
    const plain = await begin(tinySpec());
    const without = await runLoop(plain);
    const run = await begin(tinySpec({ evaluations: named }));
    const events = await runLoop(run);
    const others = events.filter(({ kind }) => kind !== 'namedEvaluation');
    expect(reported(others)).toEqual(reported(without));
    expect(await weightsOf(run)).toEqual(await weightsOf(plain));

    const found = ofKind(events, 'namedEvaluation');
    const stepsOf = (name: string) => found.flatMap((event) => (event.name === name ? [event.step] : []));
    expect(stepsOf('poem')).toEqual([0, 5, 10, 15, 20, 24]);
    expect(stepsOf('facts')).toEqual([0, 7, 14, 21, 24]);
    const [first] = found;
    expect(first).toMatchObject({ name: 'poem', dataset: { dataset: 'datasets/poem', tokenCount: 64 } });
    // An untrained model finds all bytes about equally likely.
    expect(first!.dataset!.loss).toBeCloseTo(Math.log(257), 0);
    const facts = found.flatMap(({ name, choices }) => (name === 'facts' ? [choices!] : []));
    expect(facts.map(({ questionCount }) => questionCount)).toEqual([2, 2, 2, 2, 2]);
    expect([0, 0.5, 1]).toContain(facts.at(-1)!.accuracy);
    // The correct choices come from the training text.
    expect(facts.at(-1)!.logProbability).toBeGreaterThan(facts[0]!.logProbability);
    disposeRun(plain);
    disposeRun(run);
  });

  it('are not repeated by a run that is resumed, and come out alike', async () => {
    const spec = tinySpec({ evaluations: named });
    const whole = await begin(spec);
    const expected = reported(await runLoop(whole));
    for (const stopAfter of [5, 7, 12]) {
      const { run, events } = await interrupted(begin, spec, stopAfter);
      expect(reported(events)).toEqual(expected);
      expect(await weightsOf(run)).toEqual(await weightsOf(whole));
      disposeRun(run);
    }
    disposeRun(whole);
  });

  it('come by time too, counted over a process that ends before', async () => {
    const timed = named.map((entry) => ({ ...entry, everyStepCount: 0, everySeconds: 60 }));
    let nowMs = 1e12;
    const run = await begin(tinySpec({ evaluations: timed }), { steering: { now: () => (nowMs += 7000) } });
    const found = ofKind(await runLoop(run), 'namedEvaluation');
    const poems = found.filter(({ name }) => name === 'poem').map(({ step }) => step);
    expect(poems.length).toBeGreaterThan(3);
    expect(new Set(poems).size).toBe(poems.length);
    disposeRun(run);
  });

  it('that cannot be made fail at the start of the run, and not after a week', async () => {
    const long = JSON.stringify({ question: 'q', choices: ['a'.repeat(40), 'b'], answer: 0 });
    const evaluations = [{ ...named[1]!, questions: long }];
    await expect(begin(tinySpec({ evaluations }))).rejects.toThrow(
      /The evaluation facts.*choices that fit in a sequence.*40 tokens/s,
    );
  });
});
