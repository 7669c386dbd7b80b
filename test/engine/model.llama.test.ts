import { describe, expect, it } from 'vitest';
import { loadNativeAddon } from '../../engine/dist/device/cpu/nativeAddon.js';
import type { Device } from '../../engine/dist/device/device.js';
import { openDevice } from '../../engine/dist/openDevice.js';
import { GradientBuffer } from '../../engine/dist/model/gradientBuffer.js';
import { Llama } from '../../engine/dist/model/llama.js';
import type { Parameter } from '../../engine/dist/model/parameter.js';
import type { AdapterSettings, LlamaConfig } from '../../engine/dist/plan/runSpec.js';
import { Random } from '../../engine/dist/random.js';
import { referenceLogits, tinyConfig } from './llamaReference.js';
import { laterAdapter } from './laterAdapter.js';
import { change, lossAndGradients, sumLoss, valuesIn } from './hostModel.js';
import { seeded } from '@relora/engine/conformance';

const batch = 2;
const time = 7;
const inputs = Int32Array.from({ length: batch * time }, (_, i) => (i * 7 + 3) % 37);
const targets = Int32Array.from({ length: batch * time }, (_, i) => (i % 5 === 4 ? -1 : (i * 5 + 1) % 37));
const targetCount = targets.filter((target) => target !== -1).length;

const settings: AdapterSettings = {
  rank: 3,
  alpha: 6,
  dropout: 0,
  cycleStepCount: 10,
  restartWarmupStepCount: 1,
  momentReset: 'zero',
  momentPruneRatio: 0.9,
  targetModules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
  trainableScale: false,
  ...laterAdapter,
};

/** With so few positions that all kinds of wavelengths occur: short, long and in between. */
const ropeScaling = {
  factor: 8,
  lowFrequencyFactor: 0.02,
  highFrequencyFactor: 3,
  originalMaxPositionEmbeddings: 16,
};

interface Variant {
  name: string;
  config: LlamaConfig;
  adapter: AdapterSettings | null;
}

const variants: Variant[] = [
  { name: 'full rank', config: tinyConfig(), adapter: null },
  {
    name: 'grouped queries, tied embeddings',
    config: tinyConfig({ numKeyValueHeads: 2, tieWordEmbeddings: true }),
    adapter: null,
  },
  { name: 'adapters', config: tinyConfig({ numKeyValueHeads: 1 }), adapter: settings },
  {
    name: 'biases and scaled rotary frequencies',
    config: tinyConfig({ numKeyValueHeads: 2, attentionBias: true, ropeScaling }),
    adapter: null,
  },
  {
    name: 'adapters beside biases',
    config: tinyConfig({ numKeyValueHeads: 2, attentionBias: true, ropeScaling }),
    adapter: settings,
  },
  {
    name: 'trainable scale beside biases',
    config: tinyConfig({ attentionBias: true }),
    adapter: { ...settings, trainableScale: true },
  },
  {
    name: 'adapters on q and down only',
    config: tinyConfig(),
    adapter: { ...settings, targetModules: ['q_proj', 'down_proj'] },
  },
  {
    name: 'head norms, heads of a size of their own',
    config: tinyConfig({ numKeyValueHeads: 2, headDim: 10, qkNorm: true }),
    adapter: null,
  },
  {
    name: 'adapters beside head norms',
    config: tinyConfig({ numKeyValueHeads: 1, headDim: 10, qkNorm: true }),
    adapter: settings,
  },
  {
    name: 'a layer without a rotary embedding',
    config: tinyConfig({ numKeyValueHeads: 2, noRopeInterval: 2 }),
    adapter: settings,
  },
  { name: 'B alone', config: tinyConfig(), adapter: { ...settings, trainedFactors: 'bOnly' } },
  {
    name: 'trainable scale and dropout',
    config: tinyConfig(),
    adapter: { ...settings, trainableScale: true, dropout: 0.25 },
  },
];

/** A model with adapters, if any, as after training. */
function build(device: Device, { config, adapter }: Variant): Llama {
  const model = Llama.create(device, config, 5);
  // Norms other than 1 and weights large enough that every part matters.
  for (const parameter of model.parameters.values()) {
    const noise = seeded(parameter.buffer.length, parameter.name, 0.2);
    const isVector = parameter.shape.length === 1;
    change(device, parameter, (value, i) => (isVector ? value + noise[i]! : 5 * value));
  }
  if (adapter !== null) {
    model.attachAdapters(adapter, 5, 0);
    for (const parameter of model.parameters.values()) {
      if (parameter.role !== 'adapterB') continue;
      const learned = seeded(parameter.buffer.length, parameter.name, 0.1);
      change(device, parameter, (_, i) => learned[i]!);
    }
  }
  return model;
}

const placeOf = (step: number) => ({ version: 1 as const, seed: 1, step, micro: 0, firstSequence: 0 });

function differentiate(device: Device, variant: Variant) {
  const { count } = device.memory();
  const model = build(device, variant);
  const { loss, gradients } = lossAndGradients(model, inputs, targets, batch, time, {
    lossScale: 0.5,
    dropout: placeOf(2),
  });
  model.dispose();
  if (device.description.name === 'reference') expect(device.memory().count).toBe(count);
  return { loss, arrays: gradients };
}

function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let largest = 1e-30;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    largest = Math.max(largest, Math.abs(expected[i]!));
    worst = Math.max(worst, Math.abs(actual[i]! - expected[i]!));
  }
  return worst / largest;
}

describe.each(variants)('$name', (variant) => {
  it('gradients are final where the backward pass says so: all but those of the embedding before its end', async () => {
    const device = await openDevice({ device: 'native', precision: 'float32' });
    const model = build(device, variant);
    const gradients = new GradientBuffer(device, model.trainable(), model.backwardOrder());
    expect(new Set(model.backwardOrder())).toEqual(new Set(model.trainable()));
    const values = () => valuesIn(device, { buffer: gradients.whole });
    device.upload(gradients.whole, new Float32Array(gradients.whole.length).fill(NaN));
    const seen: { end: number; values: Float32Array }[] = [];
    const onFinal = (last: Parameter) => {
      const { end } = gradients.placed.find(({ parameter }) => parameter === last)!;
      seen.push({ end, values: values().subarray(0, end) });
    };
    const result = device.newResult(0);
    const rows = { inputs, targets, batch, time };
    model.differentiate(rows, gradients, result, { dropout: placeOf(2), onFinal });
    const all = values();
    for (const { end, values: before } of seen) expect(before).toEqual(all.subarray(0, end));
    const ends = seen.map(({ end }) => end);
    expect(ends).toEqual(ends.toSorted((one, other) => one - other));
    const { config } = variant;
    expect(ends).toHaveLength(2 * config.numHiddenLayers + (config.tieWordEmbeddings ? 1 : 2));
    expect(ends.at(-1)).toBe(gradients.placed.at(-1)!.end);
    expect(gradients.placed.at(-1)!.parameter.name).toBe('model.embed_tokens.weight');
    device.releaseResult(result);
    gradients.dispose();
    model.dispose();
  });

  it('loss and gradients on the native backend are those of the reference', async () => {
    const expected = differentiate(await openDevice({ device: 'reference', precision: 'auto' }), variant);
    const actual = differentiate(await openDevice({ device: 'native', precision: 'float32' }), variant);
    expect(actual.loss).toBeCloseTo(expected.loss, 5);
    expect([...actual.arrays.keys()]).toEqual([...expected.arrays.keys()]);
    for (const [name, gradient] of expected.arrays) {
      expect(difference(actual.arrays.get(name)!, gradient), name).toBeLessThan(5e-5);
      expect(
        gradient.some((entry) => entry !== 0),
        name,
      ).toBe(true);
    }
  });

  it.each(['reference', 'native'] as const)('logits on %s are those of a float64 Llama', async (name) => {
    const device = await openDevice({ device: name, precision: 'auto' }); // on the native backend bfloat16, if supported
    const model = build(device, variant);
    const scale = variant.adapter?.trainableScale ? 0.9 : 2; // alpha / rank = 2, limited to 0.9 if trainable
    const logits = await model.logits(inputs, batch, time, { precision: 'float32' });
    const expected = [0, 1].flatMap((row) => [
      ...referenceLogits(model, inputs.slice(row * time, (row + 1) * time), scale),
    ]);
    expect(difference(logits, expected)).toBeLessThan(2e-6);
    expect(difference(await model.logits(inputs, batch, time), expected)).toBeLessThan(0.05);
    model.dispose();
  });

  it.each(['reference', 'native'] as const)('fifty steps on %s leave no buffer behind', async (name) => {
    const device = await openDevice({ device: name, precision: 'auto' });
    const model = build(device, variant);
    let before = 0;
    for (let step = 0; step < 50; step++) {
      lossAndGradients(model, inputs, targets, batch, time, { dropout: placeOf(step) });
      if (step % 10 === 0) {
        sumLoss(model, inputs, targets, batch, time);
        if (variant.adapter !== null) {
          await model.mergeAdapters();
          model.restartAdapters(5, step);
        }
      }
      if (step === 0) before = device.memory().count; // including scratch memory of kernels
      expect(device.memory().count).toBe(before);
    }
    model.dispose();
  });
});

describe('on the native backend', () => {
  it.each(variants)(
    'a step has the same bits with any number of threads, and every time: $name',
    async (variant) => {
      const steps = [];
      for (const threads of [1, 2, 2]) {
        const device = await openDevice({ device: 'native', precision: 'auto', threads });
        // The second of each pair uses the buffers of the first again.
        steps.push(differentiate(device, variant), differentiate(device, variant));
      }
      for (const step of steps) expect(step).toEqual(steps[0]);
    },
  );

  it('every instruction set of this CPU computes the same model', async () => {
    const variant = variants[2]!;
    const expected = differentiate(await openDevice({ device: 'reference', precision: 'auto' }), variant);
    for (const instructionSet of loadNativeAddon().describe().instructionSets) {
      const device = await openDevice({ device: 'native', precision: 'float32', instructionSet });
      const actual = differentiate(device, variant);
      expect(actual.loss, instructionSet).toBeCloseTo(expected.loss, 5);
      for (const [name, gradient] of expected.arrays) {
        expect(difference(actual.arrays.get(name)!, gradient), `${instructionSet} ${name}`).toBeLessThan(
          5e-5,
        );
      }
    }
  });
});

describe.each(['reference', 'native'] as const)('on %s', (name) => {
  it('the summed loss over targets is the mean loss times their number, and -1 is no target', async () => {
    const device = await openDevice({ device: name, precision: 'float32' });
    const model = build(device, variants[0]!);
    const mean = lossAndGradients(model, inputs, targets, batch, time).loss;
    const { sum, count } = sumLoss(model, inputs, targets, batch, time);
    expect(count).toBe(targetCount);
    expect(sum / count).toBeCloseTo(mean, 5);
    const nothing = new Int32Array(batch * time).fill(-1);
    const none = sumLoss(model, inputs, nothing, batch, time);
    expect(Math.abs(none.sum)).toBe(0);
    expect(none.count).toBe(0);
    model.dispose();
  });

  it('a loss scale multiplies the loss and every gradient', async () => {
    const device = await openDevice({ device: name, precision: 'float32' });
    const model = build(device, variants[0]!);
    const whole = lossAndGradients(model, inputs, targets, batch, time);
    const quarter = lossAndGradients(model, inputs, targets, batch, time, { lossScale: 0.25 });
    expect(quarter.loss * 4).toBeCloseTo(whole.loss, 5);
    for (const [name, gradient] of whole.gradients) {
      const scaled = quarter.gradients.get(name)!.map((entry) => 4 * entry);
      expect(difference(scaled, gradient), name).toBeLessThan(1e-5);
    }
    model.dispose();
  });
});

describe('weights', () => {
  it('new weights are N(0, 0.02), norms 1, the same for the same seed', async () => {
    const device = await openDevice({ device: 'reference', precision: 'auto' });
    const config = tinyConfig({ vocabSize: 301 });
    const [one, same, other] = [1, 1, 2].map((seed) => Llama.create(device, config, seed)) as [
      Llama,
      Llama,
      Llama,
    ];
    const values = (model: Llama, name: string) => valuesIn(device, model.parameters.get(name)!);
    const table = values(one, 'model.embed_tokens.weight');
    const std = Math.sqrt(table.reduce((sum, value) => sum + value * value, 0) / table.length);
    expect(std).toBeGreaterThan(0.0195);
    expect(std).toBeLessThan(0.0205);
    expect([...values(one, 'model.norm.weight')]).toEqual(new Array(24).fill(1));
    for (const name of one.parameters.keys()) expect(values(same, name)).toEqual(values(one, name));
    expect(values(other, 'lm_head.weight')).not.toEqual(values(one, 'lm_head.weight'));
    for (const model of [one, same, other]) model.dispose();
  });

  it('weights read by name make the same model', async () => {
    const device = await openDevice({ device: 'native', precision: 'float32' });
    const model = build(device, variants[1]!);
    const asked: string[] = [];
    const read = async ({ name }: { name: string }) => {
      asked.push(name);
      return valuesIn(device, model.parameters.get(name)!);
    };
    const loaded = await Llama.fromWeights(device, model.config, read);
    expect(asked).toEqual([...model.parameters.keys()]);
    expect(asked).not.toContain('lm_head.weight');
    expect(await loaded.logits(inputs, batch, time)).toEqual(await model.logits(inputs, batch, time));
    model.dispose();
    loaded.dispose();
  });

  it('a weight of a wrong length is refused by name and nothing stays behind', async () => {
    const device = await openDevice({ device: 'native', precision: 'float32' });
    const model = Llama.create(device, tinyConfig(), 1);
    const read = async ({ name }: { name: string }) =>
      new Float32Array(name.includes('layers.1.mlp.up_proj') ? 7 : model.parameters.get(name)!.buffer.length);
    await expect(Llama.fromWeights(device, tinyConfig(), read)).rejects.toThrow(
      'model.layers.1.mlp.up_proj.weight has 7 values',
    );
    model.dispose();
  });

  it('a sequence longer than the positions of the model is refused', async () => {
    const device = await openDevice({ device: 'native', precision: 'float32' });
    const model = Llama.create(device, tinyConfig(), 1);
    const ids = new Int32Array(33);
    expect(() => sumLoss(model, ids, ids, 1, 33)).toThrow('do not fit');
    expect(() => sumLoss(model, ids, ids, 2, 16)).toThrow('Expected 2 x 16 ids');
    model.dispose();
  });
});

describe('random streams', () => {
  it('are those of their place, and do not depend on each other', () => {
    const [one, same] = [0, 0].map(() => Random.forStream(1, 'adapter', 'layer', 0));
    expect(one!.uniform()).toBe(same!.uniform());
    expect(Random.forStream(1, 'a', 1).uniform()).not.toBe(Random.forStream(1, 'a', '1').uniform());
    expect(Random.forStream(1, 'a', 'b').uniform()).not.toBe(Random.forStream(1, 'ab').uniform());
  });

  it('have the mean and the spread they promise', () => {
    const normal = new Float32Array(20_001);
    Random.forStream(3, 'normal').fillNormal(normal, 2);
    const mean = (values: ArrayLike<number>) =>
      Array.from(values).reduce((sum, value) => sum + value, 0) / values.length;
    expect(Math.abs(mean(normal))).toBeLessThan(0.06);
    expect(mean(normal.map((value) => value * value))).toBeCloseTo(4, 0);
    const uniform = new Float32Array(20_000);
    Random.forStream(3, 'uniform').fillUniform(uniform, -1, 3);
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(-1);
    expect(Math.max(...uniform)).toBeLessThan(3);
    expect(mean(uniform)).toBeCloseTo(1, 1);
    const mask = new Float32Array(20_000);
    Random.forStream(3, 'mask').fillDropoutMask(mask, 0.1);
    expect(new Set(mask)).toEqual(new Set([0, Math.fround(1 / 0.9)]));
    expect(mean(mask)).toBeCloseTo(1, 1);
  });
});
