import { beforeAll, describe, expect, it } from 'vitest';
import { loadNativeAddon } from '../../engine/dist/device/cpu/nativeAddon.js';
import { openDevice } from '../../engine/dist/openDevice.js';
import { Llama } from '../../engine/dist/model/llama.js';
import type { Device } from '../../engine/dist/device/device.js';
import { change, lossAndGradients } from './hostModel.js';
import { tinyConfig } from './llamaReference.js';
import { largest } from './nativeReference.js';
import { laterAdapter } from './laterAdapter.js';
import { seeded } from '@relora/engine/conformance';

// More rows than a block of a product, more positions than an attention tile, several blocks of every other kernel: so threads share the
// work, differently for each number of threads.
const [batch, time] = [3, 70];
const config = tinyConfig({
  vocabSize: 301,
  numHiddenLayers: 1,
  hiddenSize: 72,
  intermediateSize: 136,
  numKeyValueHeads: 2,
  maxPositionEmbeddings: time,
});
const inputs = Int32Array.from({ length: batch * time }, (_, i) => (i * 37 + 3) % 301);
const targets = Int32Array.from({ length: batch * time }, (_, i) => (i % 9 === 4 ? -1 : (i * 53 + 1) % 301));

/** Loss and all gradients of a step with adapters as after training. */
function step(device: Device): Map<string, Float32Array> {
  const model = Llama.create(device, config, 5);
  model.attachAdapters(
    {
      rank: 5,
      alpha: 10,
      dropout: 0,
      cycleStepCount: 10,
      restartWarmupStepCount: 1,
      momentReset: 'zero',
      momentPruneRatio: 0.9,
      targetModules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
      trainableScale: false,
      ...laterAdapter,
    },
    5,
    0,
  );
  for (const parameter of model.parameters.values()) {
    if (parameter.role !== 'adapterB') continue;
    const learned = seeded(parameter.buffer.length, parameter.name, 0.1);
    change(device, parameter, (_, i) => learned[i]!);
  }
  const { loss, gradients } = lossAndGradients(model, inputs, targets, batch, time);
  model.dispose();
  return new Map([['loss', Float32Array.of(loss)], ...gradients]);
}

const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);

function difference(actual: Map<string, Float32Array>, expected: Map<string, Float32Array>): number {
  expect([...actual.keys()]).toEqual([...expected.keys()]);
  const differences = [...expected].map(
    ([name, values]) => largest(actual.get(name)!.map((value, i) => value - values[i]!)) / largest(values),
  );
  return Math.max(...differences);
}

const { instructionSets } = loadNativeAddon().describe();
let reference: Map<string, Float32Array>;

beforeAll(async () => {
  reference = step(await openDevice({ device: 'reference', precision: 'float32' }));
});

describe.each(instructionSets)('a step of a whole model with %s', (instructionSet) => {
  // Sums of up to 301 sequential terms, through a layer and back; rounding to bfloat16 adds 2^-9 of a term, about twenty times in a row.
  it.each([
    ['float32', 301 * 2 ** -24 * 4],
    ['bfloat16', 20 * 2 ** -9],
  ] as const)(
    'has the bits of one thread on 2, 3 and 5, in %s, and the values of the reference',
    async (precision, tolerance) => {
      const alone = step(await openDevice({ device: 'native', precision, instructionSet, threads: 1 }));
      expect(difference(alone, reference)).toBeLessThan(tolerance);
      for (const threads of [2, 3, 5]) {
        const shared = step(await openDevice({ device: 'native', precision, instructionSet, threads }));
        const differing = [...alone.keys()].filter(
          (name) => !bits(alone.get(name)!).equals(bits(shared.get(name)!)),
        );
        expect(differing, `${threads} threads`).toEqual([]);
      }
    },
  );
});
