import { beginRun, disposeRun, openDevice, type BeginRunOptions, type RunSpec } from '@relora/engine';
import { Batches } from '@relora/engine/data';
import { describe, expect, it } from 'vitest';
import {
  interrupted,
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  tinySpec,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

async function begin(spec: RunSpec, options: Partial<BeginRunOptions> = {}) {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  return await beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

describe('documents that are omitted', () => {
  it('have the end of a text in their place, and are targets of nothing, over the end of the part too', async () => {
    const { train, tokenizer } = await dataset();
    const end = tokenizer.endOfTextId;
    const options = { sequenceLength: 16, seed: 3, cut: 2, endOfTextId: end };
    const ranges: [number, number][] = [
      [40, 70],
      [train.tokenCount - 5, train.tokenCount],
      [0, 3],
    ];
    const plain = new Batches(train, options);
    const passing = new Batches(train, { ...options, omitted: { ranges, endOfTextId: end } });
    const isOmitted = (place: number): boolean =>
      ranges.some(([start, stop]) => start <= place && place < stop);
    let changed = 0;
    for (let sequence = 0; sequence < 3 * plain.sequencesPerEpoch; sequence++) {
      const { position } = plain.placeOf(sequence);
      const [one, other] = [plain.take(sequence, 1), passing.take(sequence, 1)];
      for (let at = 0; at < 16; at++) {
        const [input, target] = [(position + at) % train.tokenCount, (position + at + 1) % train.tokenCount];
        expect(other.inputs[at]).toBe(isOmitted(input) ? end : one.inputs[at]);
        expect(other.targets[at]).toBe(isOmitted(target) ? -1 : one.targets[at]);
        if (isOmitted(target)) changed++;
      }
    }
    expect(changed).toBeGreaterThan(2 * 38);
  });

  it('are omitted alike by the thread of a run, and by one that resumes', async () => {
    const omittedDocuments = [{ dataset: 'datasets/license', firstToken: 500, tokenCount: 800 }];
    const spec = tinySpec({ omittedDocuments });
    const whole = await begin(spec);
    const events = await runLoop(whole);
    const without = ofKind(events, 'step').map(({ loss }) => loss);
    const plain = ofKind(await runLoop(await begin(tinySpec())), 'step').map(({ loss }) => loss);
    // It has a tenth of all tokens: many steps contain some of them.
    expect(without).not.toEqual(plain);
    const { run } = await interrupted(begin, spec, 9);
    expect(await weightsOf(run)).toEqual(await weightsOf(whole));
    disposeRun(run);
    disposeRun(whole);
  });

  it('belong to what decides the weights, and where there are none the hash is what it was', async () => {
    const first = await begin(tinySpec());
    const events = await runLoop(first, ({ kind }) => kind === 'checkpoint');
    const [saved] = ofKind(events, 'checkpoint');
    disposeRun(first);
    const omittedDocuments = [{ dataset: 'datasets/license', firstToken: 0, tokenCount: 8 }];
    const other = begin(tinySpec({ omittedDocuments }), { checkpointPath: saved!.path, attempt: 2 });
    await expect(other).rejects.toMatchObject({ reason: 'RUN_MISMATCH' });
    // A fork passes the specification of the checkpoint.
    const fork = await begin(tinySpec({ omittedDocuments }), {
      checkpointPath: saved!.path,
      attempt: 2,
      checkpointSpec: tinySpec(),
    });
    disposeRun(fork);
  });
});
