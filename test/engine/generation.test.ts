import { beforeAll, describe, expect, it } from 'vitest';
import { openDevice } from '../../engine/dist/openDevice.js';
import { generateTokens, type GenerationSettings } from '../../engine/dist/generation/generateTokens.js';
import { sampleToken } from '../../engine/dist/generation/sampleToken.js';
import { Llama } from '../../engine/dist/model/llama.js';
import { Random } from '../../engine/dist/random.js';
import type { Device } from '../../engine/dist/device/device.js';
import { change } from './hostModel.js';
import { tinyConfig } from './llamaReference.js';

const greedy: GenerationSettings = { tokenCountMax: 12, temperature: 0, topK: 0, topP: 1, seed: 1 };
const prompt = [3, 1, 4, 1, 5];

async function collect(
  model: Llama,
  settings: Partial<GenerationSettings> = {},
  signal?: AbortSignal,
): Promise<number[]> {
  const ids = [];
  for await (const id of generateTokens(model, prompt, { ...greedy, ...settings }, signal)) ids.push(id);
  return ids;
}

describe.each(['reference', 'native'] as const)('text on %s', (name) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ device: name, precision: 'float32' });
  });

  /** Weights large enough that logits differ clearly from position to position. */
  function lively(changes = {}): Llama {
    const model = Llama.create(device, tinyConfig({ numKeyValueHeads: 2, ...changes }), 9);
    for (const parameter of model.parameters.values())
      if (parameter.shape.length > 1) change(device, parameter, (value) => 10 * value);
    return model;
  }

  it('is the same with cached keys and values as computed again for each id', async () => {
    const model = lively();
    const cache = model.newCache();
    const ids = [...prompt];
    let cached = await model.extend(cache, Int32Array.from(prompt));
    for (let count = 0; count < 12; count++) {
      const whole = (await model.logits(Int32Array.from(ids), 1, ids.length)).slice(-37);
      cached.forEach((logit, id) => expect(Math.abs(logit - whole[id]!)).toBeLessThan(1e-4));
      const next = sampleToken(whole, greedy, Random.forStream(1, 'unused'));
      ids.push(next);
      // Two ids at once now and then: several new rows with a filled cache.
      if (count % 3 === 2) ids.push((next * 3) % 37);
      cached = await model.extend(cache, Int32Array.from(count % 3 === 2 ? ids.slice(-2) : ids.slice(-1)));
    }
    expect(new Set(ids).size).toBeGreaterThan(5);
    model.dispose();
  });

  it('continues beyond the positions of the model with the newer half of what it wrote', async () => {
    const model = lively({ maxPositionEmbeddings: 8 });
    const before = device.memory().count;
    const ids = await collect(model, { tokenCountMax: 30 });
    expect(ids.length).toBe(30);
    let window = [...prompt];
    for (const id of ids) {
      expect(id).toBe(
        sampleToken(
          (await model.logits(Int32Array.from(window), 1, window.length)).slice(-37),
          greedy,
          Random.forStream(1, 'unused'),
        ),
      );
      window.push(id);
      if (window.length > 8) window = window.slice(-4);
    }
    expect(device.memory().count).toBe(before);
    model.dispose();
  });

  it('takes memory for the positions it can fill, not for all of the model', async () => {
    const model = lively({ maxPositionEmbeddings: 1 << 16 });
    const before = process.memoryUsage().arrayBuffers;
    let most = 0;
    const ids = generateTokens(model, prompt, greedy);
    while (!(await ids.next()).done) most = Math.max(most, process.memoryUsage().arrayBuffers - before);
    expect(most).toBeLessThan(1 << 20);
    model.dispose();
  });

  it('takes the last ids of a prompt that is too long and refuses an empty one', async () => {
    const model = lively({ maxPositionEmbeddings: 4 });
    expect((await collect(model, { tokenCountMax: 1 })).length).toBe(1);
    await expect(generateTokens(model, [], greedy).next()).rejects.toThrow('at least one token');
    model.dispose();
  });

  it('repeats with the seed and differs with another', async () => {
    const model = lively();
    const drawn = { temperature: 1.5, seed: 1 };
    expect(await collect(model, drawn)).toEqual(await collect(model, drawn));
    expect(await collect(model, { ...drawn, seed: 2 })).not.toEqual(await collect(model, drawn));
    model.dispose();
  });

  it('ends at the stop id without yielding it', async () => {
    const model = lively();
    const ids = await collect(model);
    const stopId = ids[4]!;
    expect(await collect(model, { stopId })).toEqual(ids.slice(0, ids.indexOf(stopId)));
    model.dispose();
  });

  it('ends when it is aborted, and the event loop has its turn between ids', async () => {
    const model = lively();
    const abort = new AbortController();
    setImmediate(() => setImmediate(() => abort.abort()));
    const ids = await collect(model, { tokenCountMax: 100_000 }, abort.signal);
    expect(ids.length).toBeLessThan(100);
    model.dispose();
  });
});

describe('drawing an id', () => {
  const logits = Float32Array.of(0, 2, 1, 2, -1);
  const draw = (settings: Partial<GenerationSettings>) => {
    const random = Random.forStream(1, 'draw');
    const counts = new Array<number>(5).fill(0);
    for (let i = 0; i < 4000; i++)
      counts[sampleToken(logits, { temperature: 1, topK: 0, topP: 1, ...settings }, random)]!++;
    return counts.map((count) => count / 4000);
  };

  it('follows the softmax of the logits over the temperature', () => {
    const shares = Array.from(logits, (logit) => Math.exp(logit / 2));
    const total = shares.reduce((sum, share) => sum + share);
    draw({ temperature: 2 }).forEach((share, id) =>
      expect(Math.abs(share - shares[id]! / total)).toBeLessThan(0.03),
    );
  });

  it('takes the first of the likeliest at temperature 0', () => {
    expect(draw({ temperature: 0 })).toEqual([0, 1, 0, 0, 0]);
  });

  it('keeps to the k likeliest, and to the likeliest that make up p', () => {
    expect(draw({ topK: 3 }).map((share) => share > 0)).toEqual([false, true, true, true, false]);
    expect(draw({ topP: 0.5 }).map((share) => share > 0)).toEqual([false, true, false, true, false]);
    expect(draw({ topP: 1e-9 })).toEqual([0, 1, 0, 0, 0]);
  });
});
