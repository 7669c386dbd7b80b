import { describe, expect, it } from 'vitest';
import type { Device } from '../../engine/dist/device/device.js';
import { openDevice } from '../../engine/dist/openDevice.js';
import { MergeNotFinite } from '../../engine/dist/model/adapterSet.js';
import { Llama } from '../../engine/dist/model/llama.js';
import { targetModules, type AdapterSettings } from '../../engine/dist/plan/runSpec.js';
import { tinyConfig } from './llamaReference.js';
import { laterAdapter } from './laterAdapter.js';
import { change, lossAndGradients, sumLoss, valuesIn } from './hostModel.js';
import { seeded } from '@relora/engine/conformance';

const settings: AdapterSettings = {
  rank: 3,
  alpha: 6,
  dropout: 0,
  cycleStepCount: 10,
  restartWarmupStepCount: 1,
  momentReset: 'zero',
  momentPruneRatio: 0.9,
  targetModules: [...targetModules],
  trainableScale: false,
  ...laterAdapter,
};
const inputs = Int32Array.from({ length: 12 }, (_, i) => (i * 7 + 3) % 37);
const targets = Int32Array.from({ length: 12 }, (_, i) => (i * 5 + 1) % 37);

const valuesOf = (model: Llama, name: string) => valuesIn(model.device, model.parameters.get(name)!);

function adapted(device: Device, changes: Partial<AdapterSettings> = {}, seed = 5): Llama {
  const model = Llama.create(device, tinyConfig(), seed);
  model.attachAdapters({ ...settings, ...changes }, seed, 0);
  return model;
}

/** Sets every B to values as after training. */
function learn(model: Llama): void {
  for (const parameter of model.parameters.values()) {
    if (parameter.role !== 'adapterB') continue;
    const learned = seeded(parameter.buffer.length, parameter.name, 0.1);
    change(model.device, parameter, (_, i) => learned[i]!);
  }
}

function gradientsOf(model: Llama): Map<string, Float32Array> {
  return lossAndGradients(model, inputs, targets, 2, 6).gradients;
}

const isNonZero = (values: ArrayLike<number>) => Array.from(values).some((value) => value !== 0);

describe.each(['reference', 'native'] as const)('on %s', (name) => {
  const select = () => openDevice({ device: name, precision: 'auto' });

  it('A is uniform within 1/sqrt(in), B is zero, each layer and each restart has its own draw', async () => {
    const device = await select();
    const model = adapted(device);
    const same = adapted(device);
    for (const { name, inFeatures } of model.layers) {
      const a = valuesOf(model, `${name}.lora_A`);
      const bound = 1 / Math.sqrt(inFeatures);
      expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(Math.fround(bound));
      expect(Math.max(...a.map(Math.abs))).toBeGreaterThan(0.8 * bound);
      expect(isNonZero(valuesOf(model, `${name}.lora_B`))).toBe(false);
      expect(valuesOf(same, `${name}.lora_A`)).toEqual(a);
    }
    const first = model.layers.map(({ name }) => valuesOf(model, `${name}.lora_A`).join());
    expect(new Set(first).size).toBe(first.length);
    learn(model);
    model.restartAdapters(5, 1);
    const second = model.layers.map(({ name }) => valuesOf(model, `${name}.lora_A`).join());
    expect(second.filter((draw) => first.includes(draw))).toEqual([]);
    expect(model.layers.some(({ name }) => isNonZero(valuesOf(model, `${name}.lora_B`)))).toBe(false);
    model.dispose();
    same.dispose();
  });

  it.each([false, true])(
    'some adapter gradient is not zero after attaching and after every restart (trainable scale %s)',
    async (trainableScale) => {
      const device = await select();
      const model = adapted(device, { trainableScale });
      for (const restart of [1, 2, 3]) {
        const gradients = gradientsOf(model);
        for (const { name } of model.layers)
          expect(isNonZero(gradients.get(`${name}.lora_B`)!), name).toBe(true);
        learn(model);
        await model.mergeAdapters();
        model.restartAdapters(5, restart);
      }
      model.dispose();
    },
  );

  it('adapters train with embedding, norms and head; the base is frozen, adapted or not', async () => {
    const device = await select();
    const model = adapted(device, { targetModules: ['q_proj', 'up_proj'] });
    const names = model.trainable().map(({ name }) => name);
    expect([...gradientsOf(model).keys()]).toEqual(names);
    expect(names.filter((name) => name.endsWith('_proj.weight'))).toEqual([]);
    expect(names).toContain('model.embed_tokens.weight');
    expect(names).toContain('lm_head.weight');
    expect(names).toContain('model.layers.1.post_attention_layernorm.weight');
    expect(names.filter((name) => name.includes('lora')).length).toBe(2 * 2 * 2);
    expect(() => model.attachAdapters(settings, 1, 0)).toThrow('adapters already');
    model.dispose();
  });

  it.each([false, true])(
    'a merge and a restart leave the logits as they were (trainable scale %s)',
    async (trainableScale) => {
      const device = await select();
      const model = adapted(device, { trainableScale });
      learn(model);
      const before = await model.logits(inputs, 2, 6, { precision: 'float32' });
      const ownPrecision = await model.logits(inputs, 2, 6);
      const bases = model.layers.map((layer) => valuesOf(model, layer.weight.name));
      const { deltaNorm, byLayer } = await model.mergeAdapters();
      model.restartAdapters(5, 1);
      const after = await model.logits(inputs, 2, 6, { precision: 'float32' });
      const largest = Math.max(...before.map(Math.abs));
      expect(Math.max(...before.map((value, i) => Math.abs(value - after[i]!)))).toBeLessThan(
        1e-6 * Math.max(1, largest),
      );
      // The packed copies were updated too.
      const packed = await model.logits(inputs, 2, 6);
      expect(Math.max(...ownPrecision.map((value, i) => Math.abs(value - packed[i]!)))).toBeLessThan(
        0.02 * largest,
      );

      byLayer.forEach(({ layer, deltaNorm: norm }, index) => {
        const now = valuesOf(model, `${layer}.weight`);
        expect(Math.hypot(...now.map((value, i) => value - bases[index]![i]!)) / norm).toBeCloseTo(1, 3);
      });
      expect(deltaNorm).toBeCloseTo(Math.hypot(...byLayer.map((entry) => entry.deltaNorm)), 8);
      model.dispose();
    },
  );

  it('a merged weight for export is what a merge would make, and changes nothing', async () => {
    const device = await select();
    const model = adapted(device, { targetModules: ['v_proj', 'down_proj'] });
    learn(model);
    const logits = await model.logits(inputs, 2, 6);
    const merged = await Promise.all(model.layers.map((layer) => model.mergedWeight(layer)));
    expect(await model.logits(inputs, 2, 6)).toEqual(logits);
    await model.mergeAdapters();
    model.layers.forEach((layer, index) => expect(merged[index]).toEqual(valuesOf(model, layer.weight.name)));
    model.dispose();
  });

  it('a delta that is not finite is refused with the name of its layer and no weight is changed', async () => {
    const device = await select();
    const model = adapted(device);
    learn(model);
    change(device, model.parameters.get('model.layers.1.mlp.up_proj.lora_B')!, () => Number.NaN);
    const before = model.layers.map((layer) => valuesOf(model, layer.weight.name));
    await expect(model.mergeAdapters()).rejects.toThrow(MergeNotFinite);
    const { count } = device.memory(); // including scratch memory of kernels
    await expect(model.mergeAdapters()).rejects.toThrow('model.layers.1.mlp.up_proj');
    model.layers.forEach((layer, index) => expect(valuesOf(model, layer.weight.name)).toEqual(before[index]));
    expect(device.memory().count).toBe(count);
    model.dispose();
  });

  it('dropout acts on the input of adapters only, and its masks belong to seed, step and micro-batch', async () => {
    const device = await select();
    const model = adapted(device, { dropout: 0.5 });
    const lossAt = (step: number, micro = 0) =>
      lossAndGradients(model, inputs, targets, 2, 6, {
        dropout: { version: 1, seed: 1, step, micro, firstSequence: 2 * micro },
      }).loss;
    const plain = lossAndGradients(model, inputs, targets, 2, 6).loss;
    expect(lossAt(0)).toBeCloseTo(plain, 6); // B = 0: dropout has no effect, since the base sees the whole input
    learn(model);
    expect(lossAt(0)).toBe(lossAt(0));
    expect(new Set([lossAt(0), lossAt(1), lossAt(0, 1)]).size).toBe(3);
    const evaluated = sumLoss(model, inputs, targets, 2, 6);
    expect(sumLoss(model, inputs, targets, 2, 6)).toEqual(evaluated);
    model.dispose();
  });

  it('detached adapters leave the merged model, trained in full again', async () => {
    const device = await select();
    const model = adapted(device);
    learn(model);
    const logits = await model.logits(inputs, 2, 6, { precision: 'float32' });
    await model.mergeAdapters();
    model.detachAdapters();
    expect(model.packedBytes).toBe(0);
    expect(model.adapterSettings).toBeNull();
    expect(model.trainable().map(({ name }) => name)).toEqual([...model.parameters.keys()]);
    expect([...model.parameters.keys()].some((name) => name.includes('lora'))).toBe(false);
    const after = await model.logits(inputs, 2, 6, { precision: 'float32' });
    expect(Math.max(...logits.map((value, i) => Math.abs(value - after[i]!)))).toBeLessThan(1e-6);
    expect(isNonZero(gradientsOf(model).get('model.layers.0.mlp.up_proj.weight')!)).toBe(true);
    model.dispose();
  });
});

it('frozen weights are packed once while adapters are attached', async () => {
  const device = await openDevice({ device: 'native', precision: 'float32' });
  const model = adapted(device);
  expect(model.packedBytes).toBeGreaterThanOrEqual(
    2 * 4 * model.layers.reduce((sum, layer) => sum + layer.weight.buffer.length, 0),
  );
  const before = await model.logits(inputs, 2, 6);
  for (const { weight } of model.layers) change(device, weight, (value) => 2 * value);
  expect(await model.logits(inputs, 2, 6)).toEqual(before); // still the packed copies
  model.dispose();
});
