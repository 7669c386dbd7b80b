import {
  defaultRunSpec,
  secondsOf,
  stepTime,
  type DeviceSpeed,
  type FullRankOptimizer,
  type RunSpec,
} from '@relora/engine/plan';
import { expect, it } from 'vitest';
import { ReachedSpeed } from '../../server/dist/api/reachedSpeed.js';
import { ReachedSpeedStore } from '../../server/dist/store/reachedSpeedStore.js';
import { openParts } from './parts.js';

const device = (float32Flops: number): DeviceSpeed => ({
  backend: 'native',
  instructionSet: 'avx2',
  threadCount: 2,
  autoPrecision: 'float32',
  float32Flops,
  bfloat16Flops: 0,
  int8Flops: 0,
  memoryBytesPerSecond: 1e10,
});

it('is the median of what steps took over what was foreseen, from enough of them on', () => {
  const spec = defaultRunSpec();
  const slow = device(1e10);
  const expected = secondsOf(stepTime(spec, slow));
  const speed = new ReachedSpeed();
  for (let step = 0; step < 19; step++)
    speed.note('job', spec, 'slow', slow, { phase: 'adapter', seconds: expected / 2 });
  expect(speed.on('slow')).toBeUndefined();
  // A step that waited for something else has no effect.
  speed.note('job', spec, 'slow', slow, { phase: 'adapter', seconds: 100 * expected });
  expect(speed.on('slow')!.ratio).toBeCloseTo(0.5, 9);

  // A new measurement of the device has no effect: ratios refer to the one that they started with.
  const another = device(4e10);
  speed.note('other job', spec, 'slow', another, { phase: 'adapter', seconds: expected / 2 });
  expect(speed.on('slow')).toMatchObject({ basis: slow, ratio: 0.5 });
  expect(speed.on('fast')).toBeUndefined();
});

it('says between what the steps lay, without the slowest and the fastest tenth', () => {
  const spec = defaultRunSpec();
  const machine = device(1e10);
  const expected = secondsOf(stepTime(spec, machine));
  const speed = new ReachedSpeed();
  for (let step = 0; step < 101; step++)
    speed.note('job', spec, 'machine', machine, {
      phase: 'adapter',
      seconds: expected * (1 + ((step * 37) % 101) / 100),
    });
  const { ratio, lowRatio, highRatio } = speed.on('machine')!;
  expect(ratio).toBeCloseTo(1.5, 9);
  expect(lowRatio).toBeCloseTo(1.1, 9);
  expect(highRatio).toBeCloseTo(1.9, 9);
});

it('is kept by the store', async () => {
  const { db } = await openParts();
  const store = new ReachedSpeedStore(db);
  const row = { device: 'machine', basis: device(1e10), ratios: [0.5, 1 / 3] };
  await store.write({ ...row, ratios: [1] });
  await store.write(row);
  await store.write({ ...row, device: 'other' });
  expect((await store.read()).sort((a, b) => (a.device < b.device ? -1 : 1))).toEqual([
    row,
    { ...row, device: 'other' },
  ]);
});

it('holds the steps of each phase against the optimizer of that phase', () => {
  const lora = defaultRunSpec();
  const spec: RunSpec = {
    ...lora,
    warmStart: { ...lora.warmStart, stepCount: 20, optimizer: 'muon' },
    adapter: { ...lora.adapter!, cycleStepCount: 20, fullRankStepCount: 5, fullRankOptimizer: 'adamw' },
    stepCount: 100,
  };
  const machine = device(1e10);
  const expected = (optimizer: FullRankOptimizer): number =>
    secondsOf(
      stepTime(
        {
          ...spec,
          kind: 'fullRank',
          adapter: null,
          optimizer: { ...spec.optimizer, fullRankOptimizer: optimizer },
        },
        machine,
      ),
    );
  expect(expected('muon')).toBeGreaterThan(expected('adamw'));
  for (const [phase, optimizer] of [
    ['warmStart', 'muon'],
    ['fullRank', 'adamw'],
  ] as const) {
    const speed = new ReachedSpeed();
    for (let step = 0; step < 30; step++)
      speed.note('job', spec, 'machine', machine, { phase, seconds: 3 * expected(optimizer) });
    expect(speed.on('machine')!.ratio).toBeCloseTo(3, 9);
  }
});
