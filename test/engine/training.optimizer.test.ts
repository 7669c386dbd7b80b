import { beforeAll, describe, expect, it } from 'vitest';
import { openDevice } from '../../engine/dist/openDevice.js';
import type { Device } from '../../engine/dist/device/device.js';
import { GradientBuffer } from '../../engine/dist/model/gradientBuffer.js';
import { makeParameter, type Parameter, type ParameterRole } from '../../engine/dist/model/parameter.js';
import type { OptimizerSettings } from '../../engine/dist/plan/runSpec.js';
import { Random } from '../../engine/dist/random.js';
import { Optimizer } from '../../engine/dist/training/optimizer.js';
import { valuesIn } from './hostModel.js';

const settings: OptimizerSettings = {
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.1,
  gradientNormMax: 1,
  nonfiniteStepCountMax: 0,
  momentType: 'float32',
  fullRankOptimizer: 'adamw',
  momentum: 0.95,
};

let device: Device;

function parameter(name: string, role: ParameterRole, shape: number[]): Parameter {
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
  Random.forStream(1, name).fillNormal(values, 0.5);
  return makeParameter(device, name, role, values, shape);
}

function gradientsOf(parameters: Parameter[], step: number): GradientBuffer {
  const gradients = new GradientBuffer(device, parameters);
  gradients.parameters.forEach(({ name, buffer }, index) => {
    const values = new Float32Array(buffer.length);
    Random.forStream(2, name, step).fillNormal(values, 1e-3);
    device.upload(gradients.parts[index]!, values);
  });
  return gradients;
}

/** An update clipped to a fraction of its gradients' norm. */
function update(optimizer: Optimizer, gradients: GradientBuffer, learningRate: number, share = 1): void {
  const result = device.newResult(0);
  device.sumSquares(result, gradients.parts);
  const norm = Math.hypot(...gradients.parts.flatMap((buffer) => [...valuesIn(device, { buffer })]));
  optimizer.apply(gradients, learningRate, { result, normMax: share === 1 ? Infinity : share * norm });
  gradients.dispose();
}

function step(optimizer: Optimizer, parameters: Parameter[], index: number, learningRate = 1e-2): void {
  update(optimizer, gradientsOf(parameters, index), learningRate);
}

const release = (parameters: Parameter[]) => parameters.forEach(({ buffer }) => device.release(buffer));

const moments = async (optimizer: Optimizer) => {
  const values = new Map<string, Float32Array>();
  for (const { name, read } of optimizer.state()) values.set(name, (await read()) as Float32Array);
  return values;
};

describe.each(['native', 'reference'] as const)('AdamW on %s', (name) => {
  beforeAll(async () => {
    device = await openDevice({ device: name, precision: 'float32', threads: 1 });
  });

  it('follows the formula in float64 for 300 steps, with weight decay and clipping', async () => {
    const [w] = [parameter('w', 'shared', [17, 3])];
    const optimizer = new Optimizer(device, settings);
    const p = Float64Array.from(valuesIn(device, w));
    const [m, v] = [new Float64Array(p.length), new Float64Array(p.length)];
    for (let t = 1; t <= 300; t++) {
      const gradients = gradientsOf([w], t);
      const scale = t % 3 === 0 ? 0.25 : 1;
      const rate = 1e-2 * (1 - t / 400);
      const g = Float64Array.from(valuesIn(device, { buffer: gradients.of(w)! }), (value) => value * scale);
      update(optimizer, gradients, rate, scale);
      for (let i = 0; i < p.length; i++) {
        m[i] = 0.9 * m[i]! + 0.1 * g[i]!;
        v[i] = 0.999 * v[i]! + 0.001 * g[i]! ** 2;
        const direction = m[i]! / (1 - 0.9 ** t) / (Math.sqrt(v[i]! / (1 - 0.999 ** t)) + 1e-8);
        p[i] = p[i]! - rate * (0.1 * p[i]! + direction);
      }
    }
    const found = valuesIn(device, w);
    // Each step rounds a weight of about 1 once: 300 times 6e-8.
    p.forEach((value, i) => expect(Math.abs(found[i]! - value)).toBeLessThan(3e-5));
    optimizer.dispose();
    release([w]);
  });

  it('forgets A and B only, exactly, and starts their count again', async () => {
    const parameters = [
      parameter('embed', 'shared', [9, 4]),
      parameter('q.lora_A', 'adapterA', [8, 2]),
      parameter('q.lora_B', 'adapterB', [2, 8]),
      parameter('q.lora_scale', 'adapterScale', [1]),
    ];
    const optimizer = new Optimizer(device, settings);
    for (let t = 0; t < 5; t++) step(optimizer, parameters, t);
    const before = await moments(optimizer);

    expect(await optimizer.forgetAdapters('zero', 0.9, Math.random)).toBe(1);
    for (const [name, values] of await moments(optimizer)) {
      if (/lora_[AB]/.test(name)) expect(values.every((value) => Object.is(value, 0))).toBe(true);
      else expect(values).toEqual(before.get(name));
    }
    expect(before.get('q.lora_A.second_moment')!.some((value) => value !== 0)).toBe(true);
    expect(optimizer.stepCounts).toEqual({ shared: 5, base: 0, adapter: 0, scale: 5 });

    // The first update after it has the size of the rate, like every first update of Adam.
    const a = parameters[1]!;
    const start = valuesIn(device, a);
    step(optimizer, parameters, 99, 1e-3);
    const largest = Math.max(
      ...Array.from(valuesIn(device, a), (value, i) => Math.abs(value - start[i]! * (1 - 1e-4))),
    );
    expect(largest).toBeGreaterThan(0.99e-3);
    expect(largest).toBeLessThan(1.01e-3);
    optimizer.dispose();
    release(parameters);
  });

  it('prunes a measured share of moments and continues to count', async () => {
    const parameters = [parameter('embed', 'shared', [9, 4]), parameter('q.lora_A', 'adapterA', [100, 10])];
    const optimizer = new Optimizer(device, settings);
    step(optimizer, parameters, 0);
    const before = await moments(optimizer);
    expect(await optimizer.forgetAdapters('magnitude', 0.9, Math.random)).toBe(0.9);
    const after = await moments(optimizer);
    expect(after.get('embed.first_moment')).toEqual(before.get('embed.first_moment'));
    const kept = after.get('q.lora_A.first_moment')!.filter((value) => value !== 0);
    expect(kept.length).toBe(100);
    const sorted = before.get('q.lora_A.first_moment')!.map(Math.abs).sort();
    expect(Math.min(...kept.map(Math.abs))).toBe(sorted[900]);
    expect(optimizer.stepCounts.adapter).toBe(1);

    const random = Random.forStream(1, 'prune');
    const ratio = await optimizer.forgetAdapters('random', 0.5, () => random.uniform());
    const zeros = [...(await moments(optimizer))].filter(([name]) => name.includes('lora'));
    const counted = zeros.flatMap(([, values]) => [...values]).filter((value) => value === 0).length;
    expect(ratio).toBe(counted / 2000);
    expect(ratio).toBeGreaterThan(0.92);
    optimizer.dispose();
    release(parameters);
  });

  it('frees the moments of a base that is frozen, while shared moments stay', async () => {
    const embed = parameter('embed', 'shared', [9, 4]);
    const base = parameter('q.weight', 'base', [8, 8]);
    const optimizer = new Optimizer(device, settings);
    step(optimizer, [embed, base], 0);
    const before = device.memory().count;
    const shared = (await moments(optimizer)).get('embed.second_moment');
    optimizer.drop('base');
    expect(device.memory().count).toBe(before - 2);
    expect((await moments(optimizer)).get('embed.second_moment')).toEqual(shared);
    expect([...(await moments(optimizer)).keys()]).toEqual(['embed.first_moment', 'embed.second_moment']);
    optimizer.dispose();
    release([embed, base]);
  });

  describe('with moments in eight bits', () => {
    const coded: OptimizerSettings = { ...settings, momentType: 'int8' };
    const stored = async (optimizer: Optimizer) => {
      const found = new Map<string, { dtype: string; values: Int8Array }>();
      for (const { name, dtype, read } of optimizer.state())
        found.set(name, { dtype, values: (await read()) as Int8Array });
      return found;
    };

    it('codes what is large and keeps the rest in float32', async () => {
      const parameters = [
        parameter('embed', 'shared', [64, 64]),
        parameter('small', 'shared', [63, 65]),
        parameter('norm', 'shared', [8192]),
      ];
      const optimizer = new Optimizer(device, coded);
      step(optimizer, parameters, 0);
      const types = [...(await stored(optimizer))].map(([name, { dtype }]) => `${name} ${dtype}`);
      expect(types).toEqual([
        'embed.first_moment I8',
        'embed.first_moment_scales F32',
        'embed.second_moment U8',
        'embed.second_moment_scales F32',
        'small.first_moment F32',
        'small.second_moment F32',
        'norm.first_moment F32',
        'norm.second_moment F32',
      ]);
      optimizer.dispose();
      release(parameters);
    });

    it('goes where float32 moments go', async () => {
      const ways = [settings, coded].map((each) => {
        const w = parameter('w', 'shared', [64, 80]);
        const start = valuesIn(device, w);
        const optimizer = new Optimizer(device, { ...each, weightDecay: 0 });
        for (let t = 0; t < 40; t++) step(optimizer, [w], t, 1e-3);
        const moved = valuesIn(device, w).map((value, i) => value - start[i]!);
        optimizer.dispose();
        release([w]);
        return moved;
      });
      const norm = (values: Float32Array) => Math.hypot(...values);
      const difference = ways[0]!.map((value, i) => value - ways[1]![i]!);
      // Half a cell is 0.7 % of a first moment in the last decade, 7 % in the one before.
      expect(norm(difference) / norm(ways[0]!)).toBeLessThan(0.05);
    });

    it('takes over the values of moments of the other type, both ways', async () => {
      const parameters = [parameter('w', 'shared', [64, 80])];
      const kept = async (settings: OptimizerSettings, from: Optimizer) => {
        const saved = await stored(from);
        const optimizer = new Optimizer(device, settings);
        await optimizer.restore(parameters, from.stepCounts, async (name) => saved.get(name)?.values ?? null);
        return optimizer;
      };
      const original = new Optimizer(device, settings);
      for (let t = 0; t < 3; t++) step(original, parameters, t);
      const inCodes = await kept(coded, original);
      const back = await kept(settings, inCodes);
      const again = await kept(coded, back);
      for (const moment of ['w.first_moment', 'w.second_moment']) {
        const valuesOf = async (each: Optimizer) => [...(await stored(each)).get(moment)!.values];
        const [before, after] = [await valuesOf(original), await valuesOf(back)];
        const largest = Math.max(...before!.map(Math.abs));
        // Half a cell of the last decade at most, for the large values of a block.
        before!.forEach((value, i) => expect(Math.abs(after![i]! - value)).toBeLessThan(0.01 * largest));
        // A value decoded from a code is encoded to the same code.
        expect((await stored(again)).get(moment)).toEqual((await stored(inCodes)).get(moment));
      }
      for (const each of [original, inCodes, back, again]) each.dispose();
      release(parameters);
    });

    it.each(['zero', 'random', 'magnitude'] as const)(
      'a reset by %s leaves exact zeros and touches no other code and no scale',
      async (mode) => {
        const parameters = [parameter('q.lora_A', 'adapterA', [128, 64])];
        const optimizer = new Optimizer(device, coded);
        for (let t = 0; t < 3; t++) step(optimizer, parameters, t);
        const copy = async () =>
          new Map([...(await stored(optimizer))].map(([name, { values }]) => [name, values.slice()]));
        const before = await copy();
        const random = Random.forStream(3, 'prune');
        const share = await optimizer.forgetAdapters(mode, 0.75, () => random.uniform());
        const after = await copy();
        let zeros = 0;
        for (const moment of ['first', 'second']) {
          const name = `q.lora_A.${moment}_moment`;
          expect(after.get(`${name}_scales`)).toEqual(before.get(`${name}_scales`));
          after.get(name)!.forEach((code, i) => {
            if (code === 0) zeros++;
            else expect(code).toBe(before.get(name)![i]);
          });
        }
        expect(zeros / (2 * 8192)).toBe(share);
        expect(share).toBeGreaterThan(mode === 'zero' ? 0.999 : 0.73);
        if (mode !== 'zero') expect(share).toBeLessThan(0.78);
        optimizer.dispose();
        release(parameters);
      },
    );
  });
});
