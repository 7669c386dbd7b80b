import { closeSync, openSync, readFileSync, readSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  measureExport,
  openDevice,
  runWeights,
  type ExportCheck,
  type ExportOptions,
  type TrainingRun,
} from '@relora/engine';
import { LogitComparison } from '../../engine/dist/exports/logitComparison.js';
import { licenseDataset, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const check: ExportCheck = {
  tokenCount: 256,
  sequenceLength: 32,
  ratioMax: { float32: 1e-5, float16: 0.002, bfloat16: 0.02, q8_0: 0.02 },
};

/** In the middle of a cycle, when adapters have learned something that was not merged. */
async function trainedRun(changes: Parameters<typeof tinySpec>[0] = {}, lastStep = 15): Promise<TrainingRun> {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const spec = tinySpec(changes);
  const run = await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
  await runLoop(run, (event) => event.kind === 'step' && event.step === lastStep);
  return run;
}

type What = Pick<ExportOptions, 'format' | 'weightType'>;

async function exported(run: TrainingRun, what: What): Promise<string> {
  const folder = join(newFolder(), 'model');
  await exportModel(await runWeights(run), folder, { ...what, shardBytesMax: 50_000, job: null });
  return folder;
}

async function measured(run: TrainingRun, folder: string, what: What, changed: Partial<ExportCheck> = {}) {
  const source = await runWeights(run);
  return await measureExport(run.device, source, folder, what, run.dataset, { ...check, ...changed });
}

/** Mean loss of the first tokens from the run's own logits. */
async function lossOf(run: TrainingRun, tokenCount: number): Promise<number> {
  const ids = run.dataset.heldOut.read(0, tokenCount + 1);
  const logits = await run.model.logits(ids.slice(0, -1), tokenCount / 32, 32, { precision: 'float32' });
  const { vocabSize } = run.model.config;
  let sum = 0;
  for (let row = 0; row < tokenCount; row++) {
    const values = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
    const total = values.reduce((all, value) => all + Math.exp(value), 0);
    sum += Math.log(total) - values[ids[row + 1]!]!;
  }
  return sum / tokenCount;
}

const models: [name: string, changes: Parameters<typeof tinySpec>[0]][] = [
  ['grouped queries', {}],
  ['a tied head', { model: { tieWordEmbeddings: true } }],
  ['biases as in Qwen2', { model: { attentionBias: true } }],
  ['a trainable scale', { adapter: { trainableScale: true } }],
];

describe.each(models)('an export of a model with %s', (_, changes) => {
  it('is measured by its files, in each layout and type', async () => {
    const run = await trainedRun(changes);
    const loss = await lossOf(run, 256);
    const ratios: Record<string, number> = {};
    for (const [format, weightType] of [
      ['huggingFace', 'float32'],
      ['huggingFace', 'float16'],
      ['huggingFace', 'bfloat16'],
      ['peft', 'float32'],
      ['peft', 'bfloat16'],
      ['gguf', 'float32'],
      ['gguf', 'float16'],
      ['gguf', 'bfloat16'],
      ['gguf', 'q8_0'],
    ] as const) {
      const what = { format, weightType };
      const found = (await measured(run, await exported(run, what), what))!;
      expect(found).toMatchObject({ tokenCount: 256, heldOut: true });
      expect(found.loss).toBeCloseTo(loss, 4);
      expect(Math.abs(found.exportedLoss - found.loss)).toBeLessThanOrEqual(2 * found.logitDifferenceMax);
      ratios[`${format} ${weightType}`] = found.logitDifferenceRatio;
      if (weightType !== 'float32') expect(found.logitDifferenceRatio).toBeGreaterThan(0);
    }
    // The same weights: only rounding of sums could differ.
    expect(ratios['huggingFace float32']).toBe(0);
    expect(ratios['gguf float32']).toBe(0);
    // Norms and biases in GGUF are always float32.
    expect(ratios['gguf bfloat16']!).toBeLessThan(ratios['huggingFace bfloat16']!);
    if (process.env.RELORA_TEST_FIGURES) console.log(ratios);
    expect(ratios['huggingFace float16']!).toBeLessThan(ratios['huggingFace bfloat16']!);
    disposeRun(run);
  });
});

it('a logit that is not a number makes every measure so, whichever row it is in', () => {
  const rows = [0, 1, 2].map((nan) => {
    const wanted = Float32Array.from({ length: 12 }, (_, i) => Math.sin(i));
    const found = wanted.map((logit, i) => (i === nan * 4 + 1 ? NaN : logit + 0.01 * (i % 3)));
    const comparison = new LogitComparison(Int32Array.of(0, 1, 2), 4);
    comparison.add({ first: 0, count: 4, values: wanted }, { first: 0, count: 4, values: found });
    return comparison.result();
  });
  for (const { logitDifferenceMax, logitDifferenceRatio, exportedLoss } of rows)
    expect([logitDifferenceMax, logitDifferenceRatio, exportedLoss]).toEqual([NaN, NaN, NaN]);
});

describe('an export that is not the model', () => {
  const gguf = { format: 'gguf', weightType: 'q8_0' } as const;
  const safetensors = { format: 'huggingFace', weightType: 'float32' } as const;

  /** Changes some bytes near the end of a file. */
  function damage(path: string): void {
    const file = openSync(path, 'r+');
    const at = statSync(path).size - 600;
    const bytes = Buffer.alloc(512);
    readSync(file, bytes, 0, 512, at);
    for (let i = 0; i < 512; i++) bytes[i]! ^= 0x40;
    writeSync(file, bytes, 0, 512, at);
    closeSync(file);
  }

  it('because a file was written wrongly is refused with the figures', async () => {
    const run = await trainedRun();
    const folder = await exported(run, gguf);
    damage(join(folder, 'model.gguf'));
    await expect(measured(run, folder, gguf)).rejects.toMatchObject({ reason: 'EXPORT_DIFFERS' });
    await expect(measured(run, folder, gguf)).rejects.toThrow(
      /^gguf in q8_0 as it was read back: expected logits that differ by at most 0\.02 of their spread from those of the run, found [\d.e+NaN]+, at most .* in one logit; loss .* for .* on 256 tokens$/,
    );
    disposeRun(run);
  });

  it('because its type rounds more than the bound lets pass is refused', async () => {
    const run = await trainedRun();
    const ratioMax = { ...check.ratioMax, q8_0: 1e-6 };
    await expect(measured(run, await exported(run, gguf), gguf, { ratioMax })).rejects.toThrow(
      /differ by at most 0\.000001 of their spread/,
    );
    disposeRun(run);
  });

  it('because it describes another one is refused, and one that is cut off cannot be read', async () => {
    const run = await trainedRun();
    const folder = await exported(run, safetensors);
    const config = readFileSync(join(folder, 'config.json'), 'utf8');
    writeFileSync(
      join(folder, 'config.json'),
      config.replace('"rms_norm_eps": 0.000001', '"rms_norm_eps": 0.01'),
    );
    await expect(measured(run, folder, safetensors)).rejects.toThrow(/rmsNormEps of config\.json: expected/);
    const cut = await exported(run, gguf);
    const path = join(cut, 'model.gguf');
    writeFileSync(path, readFileSync(path).subarray(0, -5000));
    await expect(measured(run, cut, gguf)).rejects.toThrow(/It ends before .* does/);
    disposeRun(run);
  });

  it('is not looked for where no tokens are asked for', async () => {
    const run = await trainedRun();
    expect(await measured(run, await exported(run, gguf), gguf, { tokenCount: 0 })).toBeNull();
    disposeRun(run);
  });
});
