import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openDevice, type Device } from '@relora/engine';
import {
  Bench,
  casesOf,
  checkCase,
  largestDifference,
  optimizerCases,
  seeded,
  updateCases,
  type Case,
} from '@relora/engine/conformance';
import { columns } from './devices.js';
import { checkedTable } from './table.js';

const cases = [...casesOf('small'), ...casesOf('larger'), ...updateCases, ...optimizerCases];
let reference: Device;
const expected = new Map<Case, Map<string, Float32Array>>();
const missing = columns.filter(({ isMissing = false }) => isMissing).map(({ name }) => name);
const table = checkedTable(missing);

beforeAll(async () => {
  reference = await openDevice({ device: 'reference', precision: 'float32' });
  for (const one of cases) expected.set(one, await one.run(new Bench(reference)));
});

for (const { name: column, open, tolerance, refuses = [], isMissing = false, kernels } of columns)
  describe.skipIf(isMissing)(column, () => {
    let device: Device;
    beforeAll(async () => {
      device = await open();
    });
    afterAll(() => device.close());

    // In the smallest shapes rounding to 8 bits dominates.
    const own = cases.filter(({ name }) => tolerance < 1e-3 || !name.endsWith(' small'));
    it.each(own.filter(({ call }) => refuses.includes(call)))('$name is refused', async (one) => {
      await expect(one.run(new Bench(device))).rejects.toThrow(/has no kernels of/);
    });

    it.each(own.filter(({ call }) => !refuses.includes(call)))('$name', async (one) => {
      const found = await checkCase(device, one, expected.get(one)!, tolerance);
      const wanted = kernels(one);
      expect(found.ran, 'kernels that ran').toEqual(expect.arrayContaining(wanted));
      expect(found.wrong).toEqual([]);
      // Repeated with reused buffers it gives the same bits, and allocates no more buffers. Scratch memory of kernels may have grown.
      expect(found.changed).toEqual([]);
      if (device.description.name !== 'native') expect(found.lostCount).toBe(0);
      table.ran(one.call, column, wanted);
    });
  });

/** The definitions themselves, and a float32 device that shares no code with them. */
describe.each([
  { name: 'reference', open: () => openDevice({ device: 'reference', precision: 'float32' }) },
  { name: 'native', open: () => openDevice({ device: 'native', precision: 'float32', threads: 1 }) },
] as const)('gradients agree with finite differences: $name', ({ open }) => {
  // Cases with a value and its gradients: the gradient of sum(y * dy) with respect to x is dx.
  const differentiable = casesOf('small').filter(({ call }) =>
    ['attentionHalf', 'attentionHalf of masked documents', 'mlpHalf', 'rmsNorm', 'embedding'].includes(call),
  );
  it.each(differentiable)('$name', async (one) => {
    const device = await open();
    const found = await one.run(new Bench(device));
    for (const [input, gradient] of gradientsByInput(found)) {
      const values = found.get(gradient)!;
      // Every third entry of the longer ones.
      const stride = values.length > 24 ? 3 : 1;
      const numeric: number[] = [];
      const analytic: number[] = [];
      for (let place = 0; place < values.length; place += stride) {
        const h = 2 ** -7; // error of the formula ~ h², of float32 ~ 2^-24 / h
        const at = async (step: number) => {
          const moved = (name: string, given: Float32Array) => {
            if (name !== input) return given;
            const changed = given.slice();
            changed[place]! += step;
            return changed;
          };
          const y = (await one.run(new Bench(device, moved))).get('y')!;
          const dy = seeded(y.length, 'dy');
          return y.reduce((sum, value, i) => sum + value * dy[i]!, 0);
        };
        numeric.push(((await at(h)) - (await at(-h))) / (2 * h));
        analytic.push(values[place]!);
      }
      // Subtracts the previous contents, if the gradient is added to them.
      if (one.name.startsWith('embedding whose gradient is added')) {
        const before = seeded(values.length, 'before');
        numeric.forEach((_, i) => (numeric[i]! += before[i * stride]!));
      }
      expect(largestDifference(analytic, numeric), input).toBeLessThan(5e-3);
    }
    device.close();
  });
});

/** `d q a` is the gradient with respect to the input `q a`, `dx` to `x`. */
function gradientsByInput(found: ReadonlyMap<string, Float32Array>): [input: string, gradient: string][] {
  return [...found.keys()]
    .filter((name) => name.startsWith('d'))
    .map((name) => [name.startsWith('d ') ? name.slice(2) : name.slice(1), name]);
}
