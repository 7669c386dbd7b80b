import { dispose, memory, tensor, variable, type Tensor } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { selectBackend } from '../../engine/src/backend/selectBackend.js';
import type { Parameter, ParameterRole } from '../../engine/src/model/parameter.js';
import type { OptimizerSettings } from '../../engine/src/plan/runSpec.js';
import { Random } from '../../engine/src/random.js';
import { AdamW } from '../../engine/src/training/adamW.js';

const settings: OptimizerSettings = {
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.1,
  gradientNormMax: 1,
  nonfiniteStepCountMax: 0,
  momentType: 'float32',
};

function parameter(name: string, role: ParameterRole, shape: number[]): Parameter {
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
  Random.forStream(1, name).fillNormal(values, 0.5);
  return { name, role, variable: variable(tensor(values, shape), true) };
}

function gradientsOf(parameters: Parameter[], step: number): Map<string, Tensor> {
  return new Map(
    parameters.map(({ name, variable }) => {
      const values = new Float32Array(variable.size);
      Random.forStream(2, name, step).fillNormal(values, 1e-3);
      return [name, tensor(values, variable.shape)];
    }),
  );
}

function step(optimizer: AdamW, parameters: Parameter[], index: number, learningRate = 1e-2): void {
  const gradients = gradientsOf(parameters, index);
  optimizer.apply(parameters, gradients, learningRate);
  dispose([...gradients.values()]);
}

const moments = (optimizer: AdamW) =>
  new Map([...optimizer.state()].map(({ name, read }) => [name, (read() as Float32Array).slice()]));

describe.each(['native', 'reference'] as const)('AdamW on %s', (device) => {
  beforeAll(async () => {
    await selectBackend({ device, precision: 'float32', threads: 1 });
  });

  it('follows the formula in float64 for 300 steps, with weight decay and clipping', () => {
    const [w] = [parameter('w', 'shared', [17, 3])];
    const optimizer = new AdamW(settings);
    const p = Float64Array.from(w.variable.dataSync());
    const [m, v] = [new Float64Array(p.length), new Float64Array(p.length)];
    for (let t = 1; t <= 300; t++) {
      const gradients = gradientsOf([w], t);
      const scale = t % 3 === 0 ? 0.25 : 1;
      const rate = 1e-2 * (1 - t / 400);
      const g = Float64Array.from(gradients.get('w')!.dataSync(), (value) => value * scale);
      optimizer.apply([w], gradients, rate, scale);
      dispose([...gradients.values()]);
      for (let i = 0; i < p.length; i++) {
        m[i] = 0.9 * m[i]! + 0.1 * g[i]!;
        v[i] = 0.999 * v[i]! + 0.001 * g[i]! ** 2;
        const direction = m[i]! / (1 - 0.9 ** t) / (Math.sqrt(v[i]! / (1 - 0.999 ** t)) + 1e-8);
        p[i] = p[i]! - rate * (0.1 * p[i]! + direction);
      }
    }
    const found = w.variable.dataSync();
    // Each step rounds a weight of about 1 once: 300 times 6e-8.
    p.forEach((value, i) => expect(Math.abs(found[i]! - value)).toBeLessThan(3e-5));
    optimizer.dispose();
    w.variable.dispose();
  });

  it('forgets A and B only, exactly, and starts their count anew', () => {
    const parameters = [
      parameter('embed', 'shared', [9, 4]),
      parameter('q.lora_A', 'adapterA', [8, 2]),
      parameter('q.lora_B', 'adapterB', [2, 8]),
      parameter('q.lora_scale', 'adapterScale', [1]),
    ];
    const optimizer = new AdamW(settings);
    for (let t = 0; t < 5; t++) step(optimizer, parameters, t);
    const before = moments(optimizer);

    expect(optimizer.forgetAdapters('zero', 0.9, Math.random)).toBe(1);
    for (const [name, values] of moments(optimizer)) {
      if (/lora_[AB]/.test(name)) expect(values.every((value) => Object.is(value, 0))).toBe(true);
      else expect(values).toEqual(before.get(name));
    }
    expect(before.get('q.lora_A.second_moment')!.some((value) => value !== 0)).toBe(true);
    expect(optimizer.stepCounts).toEqual({ shared: 5, base: 0, adapter: 0, scale: 5 });

    // The first update after it has the size of the rate, as every first update of Adam has.
    const a = parameters[1]!.variable;
    const start = a.dataSync().slice();
    step(optimizer, parameters, 99, 1e-3);
    const largest = Math.max(
      ...Array.from(a.dataSync(), (value, i) => Math.abs(value - start[i]! * (1 - 1e-4))),
    );
    expect(largest).toBeGreaterThan(0.99e-3);
    expect(largest).toBeLessThan(1.01e-3);
    optimizer.dispose();
    dispose(parameters.map(({ variable }) => variable));
  });

  it('prunes a measured share of moments and goes on counting', () => {
    const parameters = [parameter('embed', 'shared', [9, 4]), parameter('q.lora_A', 'adapterA', [100, 10])];
    const optimizer = new AdamW(settings);
    step(optimizer, parameters, 0);
    const before = moments(optimizer);
    expect(optimizer.forgetAdapters('magnitude', 0.9, Math.random)).toBe(0.9);
    const after = moments(optimizer);
    expect(after.get('embed.first_moment')).toEqual(before.get('embed.first_moment'));
    const kept = after.get('q.lora_A.first_moment')!.filter((value) => value !== 0);
    expect(kept.length).toBe(100);
    const sorted = before.get('q.lora_A.first_moment')!.map(Math.abs).sort();
    expect(Math.min(...kept.map(Math.abs))).toBe(sorted[900]);
    expect(optimizer.stepCounts.adapter).toBe(1);

    const random = Random.forStream(1, 'prune');
    const ratio = optimizer.forgetAdapters('random', 0.5, () => random.uniform());
    const zeros = [...moments(optimizer)].filter(([name]) => name.includes('lora'));
    const counted = zeros.flatMap(([, values]) => [...values]).filter((value) => value === 0).length;
    expect(ratio).toBe(counted / 2000);
    expect(ratio).toBeGreaterThan(0.92);
    optimizer.dispose();
    dispose(parameters.map(({ variable }) => variable));
  });

  it('frees the moments of a base that is frozen, while shared moments go on', () => {
    const embed = parameter('embed', 'shared', [9, 4]);
    const base = parameter('q.weight', 'base', [8, 8]);
    const optimizer = new AdamW(settings);
    step(optimizer, [embed, base], 0);
    const before = memory().numTensors;
    const shared = moments(optimizer).get('embed.second_moment');
    optimizer.drop('base');
    expect(memory().numTensors).toBe(before - 2);
    expect(moments(optimizer).get('embed.second_moment')).toEqual(shared);
    expect([...moments(optimizer).keys()]).toEqual(['embed.first_moment', 'embed.second_moment']);
    optimizer.dispose();
    dispose([embed.variable, base.variable]);
  });

  describe('with moments in eight bits', () => {
    const coded: OptimizerSettings = { ...settings, momentType: 'int8' };
    const stored = (optimizer: AdamW) =>
      new Map(
        [...optimizer.state()].map(({ name, dtype, read }) => [name, { dtype, values: read() as Int8Array }]),
      );

    it('codes what is large and keeps the rest in float32', () => {
      const parameters = [
        parameter('embed', 'shared', [64, 64]),
        parameter('small', 'shared', [63, 65]),
        parameter('norm', 'shared', [8192]),
      ];
      const optimizer = new AdamW(coded);
      step(optimizer, parameters, 0);
      const types = [...stored(optimizer)].map(([name, { dtype }]) => `${name} ${dtype}`);
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
      dispose(parameters.map(({ variable }) => variable));
    });

    it('goes where float32 moments go', () => {
      const ways = [settings, coded].map((each) => {
        const w = parameter('w', 'shared', [64, 80]);
        const start = w.variable.dataSync().slice();
        const optimizer = new AdamW({ ...each, weightDecay: 0 });
        for (let t = 0; t < 40; t++) step(optimizer, [w], t, 1e-3);
        const moved = w.variable.dataSync().map((value, i) => value - start[i]!);
        optimizer.dispose();
        w.variable.dispose();
        return moved;
      });
      const norm = (values: Float32Array) => Math.hypot(...values);
      const difference = ways[0]!.map((value, i) => value - ways[1]![i]!);
      // Half a cell is 0.7 % of a first moment in the last decade, 7 % in the one before it.
      expect(norm(difference) / norm(ways[0]!)).toBeLessThan(0.05);
    });

    it('takes over the values of moments of the other type, both ways', async () => {
      const parameters = [parameter('w', 'shared', [64, 80])];
      const kept = async (settings: OptimizerSettings, from: AdamW) => {
        const saved = stored(from);
        const optimizer = new AdamW(settings);
        await optimizer.restore(parameters, from.stepCounts, async (name) => saved.get(name)?.values ?? null);
        return optimizer;
      };
      const original = new AdamW(settings);
      for (let t = 0; t < 3; t++) step(original, parameters, t);
      const inCodes = await kept(coded, original);
      const back = await kept(settings, inCodes);
      const again = await kept(coded, back);
      for (const moment of ['w.first_moment', 'w.second_moment']) {
        const [before, after] = [original, back].map((each) => [...stored(each).get(moment)!.values]);
        const largest = Math.max(...before!.map(Math.abs));
        // Half a cell of the last decade at most, of what is large in its block.
        before!.forEach((value, i) => expect(Math.abs(after![i]! - value)).toBeLessThan(0.01 * largest));
        // A value that came from a code goes back to it.
        expect(stored(again).get(moment)).toEqual(stored(inCodes).get(moment));
      }
      for (const each of [original, inCodes, back, again]) each.dispose();
      dispose(parameters.map(({ variable }) => variable));
    });

    it.each(['zero', 'random', 'magnitude'] as const)(
      'a reset by %s leaves exact zeros and touches no other code and no scale',
      (mode) => {
        const parameters = [parameter('q.lora_A', 'adapterA', [128, 64])];
        const optimizer = new AdamW(coded);
        for (let t = 0; t < 3; t++) step(optimizer, parameters, t);
        const copy = () =>
          new Map([...stored(optimizer)].map(([name, { values }]) => [name, values.slice()]));
        const before = copy();
        const random = Random.forStream(3, 'prune');
        const share = optimizer.forgetAdapters(mode, 0.75, () => random.uniform());
        const after = copy();
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
        dispose(parameters.map(({ variable }) => variable));
      },
    );
  });
});
