import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  beginRun,
  disposeRun,
  openDevice,
  takeDocuments,
  type BeginRunOptions,
  type RunSpec,
  type StepRows,
} from '@relora/engine';
import { Dataset, locateDocuments, prepareDataset } from '@relora/engine/data';
import { lossBinNats, type DocumentsReport, type GivenSpec } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { interrupted, ofKind, runLoop, temporaryFolders, tinySpec, reported, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const end = 256;
const odd = 'Zq#7~x!Kw%2^vJ&9*pG(4)mB_8+hD{6}';

/** Many short documents, and one that differs from all others. */
async function mixedDataset(oddAt: number): Promise<Dataset> {
  const folder = newFolder();
  const lines = Array.from({ length: 400 }, (_, index) => `the cat ${index % 7} sat on the mat ${index % 5}`);
  lines[oddAt] = odd;
  const path = join(folder, 'lines.jsonl');
  writeFileSync(path, lines.map((text) => `${JSON.stringify({ text })}\n`).join(''));
  const outputFolder = join(folder, 'prepared');
  await prepareDataset(
    {
      files: [{ path, name: 'lines.jsonl', format: 'jsonl', split: 'train' }],
      outputFolder,
      tokenizer: { kind: 'bytes' },
      textField: 'text',
      heldOutShare: 0,
      seed: 0,
    },
    () => {},
    new AbortController().signal,
  );
  return await Dataset.open(outputFolder, { verify: true });
}

async function begin(dataset: Dataset, changes: GivenSpec = {}, options: Partial<BeginRunOptions> = {}) {
  const spec = tinySpec(changes);
  const device = await openDevice({ device: spec.device, precision: 'float32', threads: 2 });
  return await beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1, ...options });
}

describe('the documents of a step', () => {
  const rows = (changes: Partial<StepRows> = {}): StepRows => ({
    step: 5,
    loss: 2,
    // Two sequences of four: the second document begins after the end of the first.
    documents: Int32Array.of(0, 0, 2, 2, 0, 0, 0, 0),
    targets: Int32Array.of(8, end, 9, 7, 2, -1, 4, 5),
    rowLosses: Float32Array.of(1, 2, 5, 3, 0.5, 0, 1.5, 1),
    sequenceLength: 4,
    firstSequence: 20,
    ...changes,
  });
  const empty = { window: null, mean: 0, variance: 0, stepCount: 0, spikeStep: -1 };

  it('are parted at ends of texts and of sequences, without targets that do not count', () => {
    const { record, reports } = takeDocuments(empty, rows(), 100);
    expect(reports).toEqual([]);
    expect(record.window).toMatchObject({ firstStep: 5, documentCount: 3 });
    expect(record.window!.worst).toEqual([
      { step: 5, sequence: 20, firstToken: 2, tokenCount: 2, loss: 4, excess: 4 },
      { step: 5, sequence: 20, firstToken: 0, tokenCount: 2, loss: 1.5, excess: -1 },
      { step: 5, sequence: 21, firstToken: 0, tokenCount: 3, loss: 1, excess: -3 },
    ]);
    const bins = record.window!.histogram.flatMap((count, bin) =>
      Array<number>(count).fill(bin * lossBinNats),
    );
    expect(bins).toEqual([1, 1.5, 4]);
  });

  it('are reported by the window, with the worst of all of its steps', () => {
    let record = empty as ReturnType<typeof takeDocuments>['record'];
    const reports: DocumentsReport[] = [];
    for (let step = 4; step < 10; step++) {
      const taken = takeDocuments(record, rows({ step, firstSequence: 2 * step }), 5);
      record = taken.record;
      reports.push(...taken.reports);
    }
    expect(reports.map(({ firstStep, step, documentCount }) => [firstStep, step, documentCount])).toEqual([
      [4, 4, 3],
      [5, 9, 15],
    ]);
    expect(reports[1]!.worst.slice(0, 5).map(({ step, excess }) => [step, excess])).toEqual(
      [5, 6, 7, 8, 9].map((step) => [step, 4]),
    );
    expect(reports[1]!.worst).toHaveLength(8);
  });

  it('are reported at once where the loss jumps, and where it is not finite', () => {
    let record = empty as ReturnType<typeof takeDocuments>['record'];
    for (let step = 0; step < 40; step++) {
      const taken = takeDocuments(record, rows({ step, loss: 2 + 0.01 * (step % 3) }), 1000);
      expect(taken.reports).toEqual([]);
      record = taken.record;
    }
    const jump = takeDocuments(record, rows({ step: 40, loss: 2.2 }), 1000);
    expect(jump.reports).toMatchObject([{ firstStep: 40, step: 40, isSpike: true, documentCount: 3 }]);
    // The following steps belong to the same spike.
    expect(takeDocuments(jump.record, rows({ step: 41, loss: 2.4 }), 1000).reports).toEqual([]);
    const broken = rows({ step: 60, loss: NaN });
    broken.rowLosses[6] = NaN;
    const lost = takeDocuments(record, broken, 1000);
    expect(lost.reports[0]!.worst[0]).toMatchObject({ sequence: 21, firstToken: 0, loss: NaN });
    expect(lost.record.window).toEqual(record.window);
  });
});

const windows: GivenSpec = { documentWindowStepCount: 7, evaluation: { everyStepCount: 0 } };

describe('a run', () => {
  it.each(['native', 'reference'] as const)(
    'on %s reports losses that sum to those of its steps',
    async (device) => {
      const dataset = await mixedDataset(200);
      // If there are few documents in a step, all of them are among the worst.
      const batch = { sequenceLength: 32, sequenceCount: 2, microBatchSequenceCount: 1 };
      const run = await begin(dataset, { ...windows, documentWindowStepCount: 1, device, batch });
      const events = await runLoop(run);
      const reports = ofKind(events, 'documents').filter(({ isSpike }) => !isSpike);
      expect(reports).toHaveLength(24);
      for (const { step, worst, documentCount } of reports) {
        expect(worst).toHaveLength(Math.min(8, documentCount));
        const tokens = worst.reduce((sum, { tokenCount }) => sum + tokenCount, 0);
        expect(tokens).toBe(64);
        const mean = worst.reduce((sum, { loss, tokenCount }) => sum + loss * tokenCount, 0) / tokens;
        expect(mean).toBeCloseTo(ofKind(events, 'step').find((event) => event.step === step)!.loss, 5);
      }
      disposeRun(run);
      await dataset.close();
    },
  );

  it('has the same bits with and without, and a resumed one reports the same', async () => {
    const dataset = await mixedDataset(200);
    const off = await begin(dataset, { ...windows, documentWindowStepCount: 0 });
    const plain = await runLoop(off);
    expect(ofKind(plain, 'documents')).toEqual([]);
    const on = await begin(dataset, windows);
    const events = await runLoop(on);
    expect(await weightsOf(on)).toEqual(await weightsOf(off));
    expect(ofKind(events, 'documents').map(({ firstStep, step }) => [firstStep, step])).toEqual([
      [0, 6],
      [7, 13],
      [14, 20],
      [21, 23],
    ]);
    for (const at of [3, 7, 15]) {
      const again = async (spec: RunSpec, options?: Partial<BeginRunOptions>) =>
        await begin(dataset, windows, { spec, ...options });
      const { run, events: both } = await interrupted(again, tinySpec(windows), at);
      const steps = (all: typeof both) =>
        reported(all).filter(({ kind }) => kind === 'documents' || kind === 'step');
      expect(steps(both)).toEqual(steps(events));
      disposeRun(run);
    }
    disposeRun(off);
    disposeRun(on);
    await dataset.close();
  });

  it('names the document that made its loss jump, and where it is', async () => {
    const dataset = await mixedDataset(333);
    // A pass takes about 95 steps.
    const batch = { sequenceLength: 32, sequenceCount: 4, microBatchSequenceCount: 4 };
    const run = await begin(dataset, { ...windows, kind: 'fullRank', adapter: null, stepCount: 220, batch });
    const events = await runLoop(run);
    const worst = ofKind(events, 'documents')
      .flatMap((report) => report.worst)
      .sort((a, b) => b.loss - a.loss)
      .filter(({ step, tokenCount }) => step > 100 && tokenCount > 8);
    const [first] = await locateDocuments(run.data, worst.slice(0, 1));
    expect(first).toMatchObject({ dataset: 'datasets/license', documentIndex: 333, file: 'train-00000.bin' });
    // A sequence may begin within it.
    expect(odd.slice(first!.documentToken!)).toContain(first!.text);
    expect(first!.text.length).toBeGreaterThan(8);
    const spike = ofKind(events, 'documents').find(({ isSpike, step }) => isSpike && step === worst[0]!.step);
    expect(spike).toBeDefined();
    disposeRun(run);
    await dataset.close();
  });
});

it('the losses of documents cost less than a hundredth of a step', async () => {
  const dataset = await mixedDataset(200);
  const sizes = { hiddenSize: 64, intermediateSize: 128, numHiddenLayers: 2, maxPositionEmbeddings: 256 };
  const batch = { sequenceLength: 256, sequenceCount: 8, microBatchSequenceCount: 8 };
  const run = await begin(dataset, { ...windows, model: { ...tinySpec().model, ...sizes }, batch });
  const before = process.cpuUsage();
  const events = await runLoop(run);
  const whole = process.cpuUsage(before);
  const stepCount = ofKind(events, 'step').length;

  // Measures the same work separately, repeated often enough.
  const tokens = batch.sequenceLength * batch.sequenceCount;
  const inputs = Int32Array.from({ length: tokens }, (_, index) => (index % 30 === 0 ? end : index % 250));
  let first = 0;
  const documents = inputs.map((id, index) => {
    if (index % 256 === 0) first = 0;
    if (id === end) first = index % 256;
    return first;
  });
  const rowLosses = Float32Array.from(inputs, (id) => 2 + (id % 17) / 10);
  let record = run.progress.documents;
  const rounds = 1000;
  const begun = process.cpuUsage();
  for (let step = 0; step < rounds; step++) {
    const rows = { step, loss: 2, targets: inputs, documents, rowLosses, sequenceLength: 256 };
    record = takeDocuments(record, { ...rows, firstSequence: 8 * step }, 100).record;
  }
  const alone = process.cpuUsage(begun);
  const perStep = (usage: NodeJS.CpuUsage, count: number) => (usage.user + usage.system) / count;
  expect(perStep(alone, rounds)).toBeLessThan(perStep(whole, stepCount) / 100);
  disposeRun(run);
  await dataset.close();
});
