import { describe, expect, it } from 'vitest';
import { beginRun, disposeRun, openDevice, type Device, type RunSpec } from '@relora/engine';
import { openCuda } from '@relora/engine/cuda';
import { readStoredRunSpec } from '@relora/engine/plan';
import { GradientBuffer } from '../../engine/dist/model/gradientBuffer.js';
import { Llama } from '../../engine/dist/model/llama.js';
import type { Parameter } from '../../engine/dist/model/parameter.js';
import { specHash } from '../../engine/dist/plan/specHash.js';
import { modelOptions } from '../cuda/modelPaths.js';
import { laterAdapter } from './laterAdapter.js';
import { tinyConfig } from './llamaReference.js';
import {
  endedByLetters,
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  tinySpec,
  weightsOf,
} from './tinyRun.js';
import { seeded } from '@relora/engine/conformance';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

const adapter = {
  ...{ rank: 3, alpha: 6, dropout: 0, cycleStepCount: 10, restartWarmupStepCount: 1, momentPruneRatio: 0.9 },
  ...{ momentReset: 'zero', trainableScale: false, ...laterAdapter },
  targetModules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
} satisfies NonNullable<RunSpec['adapter']>;

/** All kinds of lengths: within a tile of 64 positions, over several tiles, and a single position. */
const lengths = [1, 5, 70, 130, 2, 50, 1, 1, 21];
const time = lengths.reduce((sum, length) => sum + length);
const ids = Int32Array.from({ length: time }, (_, i) => (i * i + 3 * i) % 37);
const targets = Int32Array.from({ length: time }, (_, i) => (i % 9 === 4 ? -1 : (i * 5 + 1) % 37));

async function build(device: Device, settings: RunSpec['adapter'], isOdd: boolean): Promise<Llama> {
  const shape = isOdd ? { headDim: 10, qkNorm: true } : { noRopeInterval: 2 };
  const config = tinyConfig({ numKeyValueHeads: 2, maxPositionEmbeddings: 512, ...shape });
  const model = Llama.create(device, config, 5);
  const change = async (parameter: Parameter, changed: (value: number, index: number) => number) => {
    device.upload(parameter.buffer, (await model.valuesOf(parameter)).map(changed));
    parameter.version++;
  };
  for (const parameter of model.parameters.values())
    await change(parameter, (value) => (parameter.shape.length === 1 ? value : 5 * value));
  if (settings === null) return model;
  model.attachAdapters(settings, 5, 0);
  for (const parameter of model.parameters.values()) {
    if (parameter.role !== 'adapterB') continue;
    const learned = seeded(parameter.buffer.length, parameter.name, 0.1);
    await change(parameter, (_, i) => learned[i]!);
  }
  return model;
}

const card = (precision: 'float32' | 'bfloat16') => () =>
  Promise.resolve(openCuda({ ...modelOptions, precision }));

/** For one sequence. */
async function lossAndGradients(
  model: Llama,
  inputs: Int32Array,
  targets: Int32Array,
  { documents = null, lossScale = 1 }: { documents?: Int32Array | null; lossScale?: number } = {},
): Promise<{ loss: number; gradients: Map<string, Float32Array> }> {
  const { device } = model;
  const parameters = model.trainable();
  const sums = new GradientBuffer(device, parameters);
  const result = device.newResult(0);
  const rows = { inputs, targets, documents, batch: 1, time: inputs.length };
  model.differentiate(rows, sums, result, { lossScale });
  const { loss } = await device.readResult(result);
  const gradients = new Map<string, Float32Array>();
  for (const [index, { name }] of parameters.entries())
    gradients.set(name, (await device.download(sums.parts[index]!)) as Float32Array);
  sums.dispose();
  device.releaseResult(result);
  return { loss, gradients };
}

const devices = [
  {
    name: 'native, float32',
    open: () => openDevice({ device: 'native', precision: 'float32' }),
    within: 1e-4,
  },
  {
    name: 'native, bfloat16',
    open: () => openDevice({ device: 'native', precision: 'bfloat16' }),
    within: 0.05,
  },
  { name: 'reference', open: () => openDevice({ device: 'reference', precision: 'float32' }), within: 1e-4 },
  { name: 'cuda on its model, float32', open: card('float32'), within: 1e-4 },
  { name: 'cuda on its model, bfloat16', open: card('bfloat16'), within: 0.05 },
] as const;

describe.each(devices)('masked documents: $name', ({ open, within }) => {
  it('are refused where one begins neither with the one before it nor where it is', async () => {
    const device = await open();
    const { count } = device.memory();
    const begins = (...of: number[]) => device.newDocuments(Int32Array.from(of), 4);
    expect(() => begins(0, 0, 3, 3)).toThrow(
      'documents[2]: expected 0, as before it, or 2, where it is, got 3',
    );
    expect(() => begins(0, 1, 1, 0)).toThrow('documents[3]: expected 1');
    expect(() => begins(0, 0, 0, 0, 2)).toThrow('whole sequences of 4, got 5 positions');
    const documents = begins(0, 1, 1, 3, 0, 0, 2, 2);
    expect(documents.rowCount).toBe(8);
    device.releaseDocuments(documents);
    expect(device.memory().count).toBe(count);
  });

  it.each([
    ['all weights', null, false],
    ['adapters, norms of heads', adapter, true],
    ['a trainable scale', { ...adapter, trainableScale: true }, true],
  ] as const)('have together the loss and gradients of each by itself: %s', async (_, settings, isOdd) => {
    const device = await open();
    const model = await build(device, settings, isOdd);
    const counted = targets.filter((target) => target !== -1).length;
    let begin = 0;
    const documents = Int32Array.from(
      lengths.flatMap((length) => Array<number>(length).fill((begin += length) - length)),
    );
    const packed = await lossAndGradients(model, ids, targets, { documents });
    const sums = new Map(
      [...packed.gradients].map(([name, values]) => [name, new Float64Array(values.length)]),
    );
    let loss = 0;
    let from = 0;
    for (const length of lengths) {
      const own = targets.subarray(from, from + length);
      const share = own.filter((target) => target !== -1).length / counted;
      if (share > 0) {
        const part = await lossAndGradients(model, ids.subarray(from, from + length), own, {
          lossScale: share,
        });
        loss += part.loss;
        for (const [name, values] of part.gradients)
          values.forEach((value, i) => (sums.get(name)![i]! += value));
      }
      from += length;
    }
    expect(Math.abs(packed.loss - loss)).toBeLessThan(within * loss);
    const errorOf = (found: ReadonlyMap<string, Float32Array>, name: string): number => {
      const expected = sums.get(name)!;
      const errors = found.get(name)!.map((value, i) => Math.abs(value - expected[i]!));
      return Math.max(...errors) / Math.max(1e-6, ...expected.map(Math.abs));
    };
    for (const name of sums.keys()) expect(errorOf(packed.gradients, name), name).toBeLessThan(within);
    // Documents do not attend to each other: without the mask the gradients of queries differ.
    const seeing = await lossAndGradients(model, ids, targets);
    const name = [...sums.keys()].find((one) => one.includes('q_proj'))!;
    expect(errorOf(seeing.gradients, name)).toBeGreaterThan(2 * within);
    model.dispose();
  });
});

describe('a job with masked documents', () => {
  const masked = (changes: Parameters<typeof tinySpec>[0] = {}) =>
    tinySpec({ ...changes, batch: { maskDocuments: true } });

  it('has another hash; one without has the hash of before', () => {
    const { maskDocuments: _, ...batch } = tinySpec().batch;
    const stored = readStoredRunSpec(JSON.stringify({ ...tinySpec(), batch }));
    expect(stored.batch.maskDocuments).toBe(false);
    expect(specHash(stored, null)).toBe(specHash(tinySpec(), null));
    expect(specHash(masked(), null)).not.toBe(specHash(stored, null));
  });

  it('trains otherwise, is evaluated alike, and has the same bits every time', async () => {
    const device = await openDevice({ device: 'native', precision: 'float32' });
    const ended = endedByLetters(await dataset());
    const trained = async (spec: RunSpec) => {
      const run = await beginRun({ spec, device, dataset: ended, runFolder: newFolder(), attempt: 1 });
      const events = await runLoop(run);
      const weights = await weightsOf(run);
      disposeRun(run);
      return {
        losses: ofKind(events, 'step').map(({ loss }) => loss),
        first: ofKind(events, 'evaluation')[0]!,
        weights,
      };
    };
    const [plain, first, again] = [
      await trained(tinySpec()),
      await trained(masked()),
      await trained(masked()),
    ];
    expect(first.losses).not.toEqual(plain.losses);
    expect(first.first.loss).toBe(plain.first.loss);
    expect(again.losses).toEqual(first.losses);
    expect(again.weights).toEqual(first.weights);
  });
});
