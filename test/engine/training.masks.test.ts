import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { beginRun, disposeRun, openDevice, type Device, type RunSpec } from '@relora/engine';
import { Dataset, prepareDataset } from '@relora/engine/data';
import { accumulateGradients } from '../../engine/dist/training/gradients.js';
import { valuesIn } from './hostModel.js';
import { ofKind, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
let device: Device;
beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
});

/** Pairs whose prompts are much longer than their completions, or than everything that a run reads. */
async function pairs(promptWords: number): Promise<Dataset> {
  const [path, outputFolder] = [join(newFolder(), 'pairs.jsonl'), join(newFolder(), 'prepared')];
  const line = (i: number) => ({
    prompt: `${i} and `.repeat(promptWords),
    completion: `so ${i}`.repeat(1 + (i % 9)),
  });
  writeFileSync(path, Array.from({ length: 120 }, (_, i) => JSON.stringify(line(i))).join('\n'));
  await prepareDataset(
    {
      files: [{ path, name: 'pairs.jsonl', format: 'jsonl', split: 'auto' }],
      outputFolder,
      tokenizer: { kind: 'bytes' },
      textField: 'text',
      pairFields: { prompt: 'prompt', completion: 'completion' },
      heldOutShare: 0.1,
      seed: 1,
    },
    () => {},
    new AbortController().signal,
  );
  return Dataset.open(outputFolder, { verify: true });
}

async function begin(dataset: Dataset, spec: RunSpec) {
  return beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1 });
}

describe('training on completions', () => {
  it('weighs every target alike, however a batch is cut into micro-batches', async () => {
    const dataset = await pairs(6);
    const run = await begin(dataset, tinySpec({}));
    const { sequenceLength, sequenceCount } = run.spec.batch;
    const batch = await run.batches.read(0, sequenceCount);
    // One sequence has a single target and one has none, so that a mean of means would be far off.
    batch.targets.fill(-1, 0, sequenceLength - 1);
    batch.targets[sequenceLength - 1] = 65;
    batch.targets.fill(-1, sequenceLength, 2 * sequenceLength);
    const step = async (microBatchSequenceCount: number) => {
      const shape = {
        step: 0,
        sequenceLength,
        microBatchSequenceCount,
        firstSequence: 0,
        seed: 1,
        dropoutVersion: 1 as const,
        recompute: false,
        headPrecision: 'same' as const,
        maskDocuments: false,
        reductionType: 'float32' as const,
        isApart: false,
      };
      const found = await accumulateGradients(run, batch, shape, new AbortController().signal);
      if (found === 'empty' || found === 'aborted') throw new Error(found);
      const gradients = new Map(
        found.parameters.map(({ name }, index) => [name, valuesIn(device, { buffer: found.parts[index]! })]),
      );
      return { loss: (await device.readResult(run.result)).loss, gradients };
    };
    const whole = await step(sequenceCount);
    expect(whole.loss).toBeGreaterThan(1);
    // Sums over at most that many targets in another order.
    const tolerance = sequenceCount * sequenceLength * 2 ** -24;
    for (const count of [1, 2, 4]) {
      const parts = await step(count);
      expect(Math.abs(parts.loss - whole.loss)).toBeLessThan(whole.loss * tolerance);
      for (const [name, expected] of whole.gradients) {
        const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
        parts.gradients.get(name)!.forEach((value, index) => {
          if (Math.abs(value - expected[index]!) > largest * tolerance) expect.fail(`${name}[${index}]`);
        });
      }
    }
    disposeRun(run);
    await dataset.close();
  });

  it('learns them, and evaluates on them alone', async () => {
    const dataset = await pairs(1);
    const run = await begin(dataset, tinySpec({ evaluation: { finalTokenCount: 0 } }));
    const evaluations = ofKind(await runLoop(run), 'evaluation');
    const { trained } = dataset.manifest.heldOut;
    expect(evaluations[0]!.tokenCount).toBe(trained!.tokens);
    expect(evaluations[0]!.bitsPerByte).toBeCloseTo(
      (evaluations[0]!.loss * trained!.tokens) / Math.LN2 / trained!.bytes,
      6,
    );
    expect(evaluations.at(-1)!.loss).toBeLessThan(evaluations[0]!.loss);
    disposeRun(run);
    await dataset.close();
  });

  it('takes a step without any target without an update, and continues', async () => {
    const dataset = await pairs(2);
    const run = await begin(dataset, tinySpec({ kind: 'fullRank', adapter: null }));
    const { read } = run.batches;
    run.batches.read = async (first, count) => {
      const batch = await read.call(run.batches, first, count);
      return run.progress.nextStep === 2 ? { ...batch, targets: batch.targets.fill(-1) } : batch;
    };
    const weights: Map<string, Float32Array>[] = [];
    const steps = ofKind(
      await runLoop(run, async (event) => {
        if (event.kind === 'step' && event.step <= 2) weights.push(await weightsOf(run));
        return false;
      }),
      'step',
    );
    expect(steps.filter(({ skipped }) => skipped)).toMatchObject([{ step: 2, loss: 0, gradientNorm: 0 }]);
    expect(weights[2]).toEqual(weights[1]);
    expect(weights[1]).not.toEqual(weights[0]);
    expect(run.progress.skippedStepCount).toBe(0); // it does not count as a failed step
    disposeRun(run);
    await dataset.close();
  });
});
