import * as tf from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { selectBackend } from '../../engine/src/backend/selectBackend.js';
import { MergeNotFinite } from '../../engine/src/model/adapterSet.js';
import { Llama } from '../../engine/src/model/llama.js';
import { targetModules, type AdapterSettings } from '../../engine/src/plan/runSpec.js';
import { tinyConfig } from './llamaReference.js';
import { laterDefaults } from '../../engine/src/plan/storedRunSpec.js';
import { seeded } from './opCases.js';

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
  ...laterDefaults.adapter,
};
const inputs = Int32Array.from({ length: 12 }, (_, i) => (i * 7 + 3) % 37);
const targets = Int32Array.from({ length: 12 }, (_, i) => (i * 5 + 1) % 37);

const valuesOf = (model: Llama, name: string) =>
  Float32Array.from(model.parameters.get(name)!.variable.dataSync());

function adapted(changes: Partial<AdapterSettings> = {}, seed = 5): Llama {
  const model = Llama.create(tinyConfig(), seed);
  model.attachAdapters({ ...settings, ...changes }, seed, 0);
  return model;
}

/** Lets every B be what training might have made of it. */
function learn(model: Llama): void {
  for (const { name, role, variable } of model.parameters.values()) {
    if (role === 'adapterB')
      tf.tidy(() => variable.assign(tf.tensor(seeded(variable.size, name, 0.1), variable.shape)));
  }
}

function gradientsOf(model: Llama): Map<string, Float32Array> {
  const { gradients } = model.valueAndGradients(inputs, targets, 2, 6);
  const arrays = new Map([...gradients].map(([name, gradient]) => [name, gradient.dataSync<'float32'>()]));
  tf.dispose([...gradients.values()]);
  return arrays;
}

const isNonZero = (values: ArrayLike<number>) => Array.from(values).some((value) => value !== 0);

describe.each(['reference', 'native'] as const)('on %s', (device) => {
  const select = () => selectBackend({ device, precision: 'auto' });

  it('A is uniform within 1/sqrt(in), B is zero, each layer and each restart has its own draw', async () => {
    await select();
    const model = adapted();
    const same = adapted();
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
      await select();
      const model = adapted({ trainableScale });
      for (const restart of [1, 2, 3]) {
        const gradients = gradientsOf(model);
        for (const { name } of model.layers)
          expect(isNonZero(gradients.get(`${name}.lora_B`)!), name).toBe(true);
        learn(model);
        model.mergeAdapters();
        model.restartAdapters(5, restart);
      }
      model.dispose();
    },
  );

  it('adapters train with embedding, norms and head; the base is frozen, adapted or not', async () => {
    await select();
    const model = adapted({ targetModules: ['q_proj', 'up_proj'] });
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
      await select();
      const model = adapted({ trainableScale });
      learn(model);
      const before = model.logits(inputs, 2, 6, { precision: 'float32' });
      const ownPrecision = model.logits(inputs, 2, 6);
      const bases = model.layers.map((layer) => valuesOf(model, layer.weight.name));
      const { deltaNorm, byLayer } = model.mergeAdapters();
      model.restartAdapters(5, 1);
      const after = model.logits(inputs, 2, 6, { precision: 'float32' });
      const largest = Math.max(...before.map(Math.abs));
      expect(Math.max(...before.map((value, i) => Math.abs(value - after[i]!)))).toBeLessThan(
        1e-6 * Math.max(1, largest),
      );
      // The packed copies were made anew as well.
      const packed = model.logits(inputs, 2, 6);
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
    await select();
    const model = adapted({ targetModules: ['v_proj', 'down_proj'] });
    learn(model);
    const logits = model.logits(inputs, 2, 6);
    const merged = model.layers.map((layer) => model.mergedWeight(layer));
    expect(model.logits(inputs, 2, 6)).toEqual(logits);
    model.mergeAdapters();
    model.layers.forEach((layer, index) => expect(merged[index]).toEqual(valuesOf(model, layer.weight.name)));
    model.dispose();
  });

  it('a delta that is not finite is refused with the name of its layer and no weight is changed', async () => {
    await select();
    const model = adapted();
    learn(model);
    const bad = model.parameters.get('model.layers.1.mlp.up_proj.lora_B')!.variable;
    tf.tidy(() => bad.assign(tf.fill(bad.shape, Number.NaN)));
    const before = model.layers.map((layer) => valuesOf(model, layer.weight.name));
    const tensors = tf.memory().numTensors;
    expect(() => model.mergeAdapters()).toThrow(MergeNotFinite);
    expect(() => model.mergeAdapters()).toThrow('model.layers.1.mlp.up_proj');
    model.layers.forEach((layer, index) => expect(valuesOf(model, layer.weight.name)).toEqual(before[index]));
    expect(tf.memory().numTensors).toBe(tensors);
    model.dispose();
  });

  it('dropout acts on the input of adapters only, and its masks belong to seed, step and micro-batch', async () => {
    await select();
    const model = adapted({ dropout: 0.5 });
    const lossAt = (step: number, micro = 0) =>
      tf.tidy(() => model.loss(inputs, targets, 2, 6, { dropout: { seed: 1, step, micro } }).dataSync()[0]!);
    const plain = tf.tidy(() => model.loss(inputs, targets, 2, 6).dataSync()[0]!);
    expect(lossAt(0)).toBeCloseTo(plain, 6); // B = 0: whatever is dropped, the base sees the whole input
    learn(model);
    expect(lossAt(0)).toBe(lossAt(0));
    expect(new Set([lossAt(0), lossAt(1), lossAt(0, 1)]).size).toBe(3);
    const evaluated = model.sumLoss(inputs, targets, 2, 6);
    expect(model.sumLoss(inputs, targets, 2, 6)).toEqual(evaluated);
    model.dispose();
  });

  it('detached adapters leave the merged model, trained in full again', async () => {
    await select();
    const model = adapted();
    learn(model);
    const logits = model.logits(inputs, 2, 6, { precision: 'float32' });
    model.mergeAdapters();
    model.detachAdapters();
    expect(model.packedBytes).toBe(0);
    expect(model.adapterSettings).toBeNull();
    expect(model.trainable().map(({ name }) => name)).toEqual([...model.parameters.keys()]);
    expect([...model.parameters.keys()].some((name) => name.includes('lora'))).toBe(false);
    const after = model.logits(inputs, 2, 6, { precision: 'float32' });
    expect(Math.max(...logits.map((value, i) => Math.abs(value - after[i]!)))).toBeLessThan(1e-6);
    expect(isNonZero(gradientsOf(model).get('model.layers.0.mlp.up_proj.weight')!)).toBe(true);
    model.dispose();
  });
});

it('frozen weights are packed once while adapters are attached', async () => {
  await selectBackend({ device: 'native', precision: 'float32' });
  const model = adapted();
  expect(model.packedBytes).toBeGreaterThanOrEqual(
    2 * 4 * model.layers.reduce((sum, layer) => sum + layer.weight.variable.size, 0),
  );
  const before = model.logits(inputs, 2, 6);
  for (const { weight } of model.layers) tf.tidy(() => weight.variable.assign(tf.mul(weight.variable, 2)));
  expect(model.logits(inputs, 2, 6)).toEqual(before); // still the packed copies
  model.dispose();
});
