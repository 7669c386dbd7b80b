import { defaultRunSpec, secondsOf, stepTime, type DeviceSpeed } from '@relora/engine/plan';
import { expect, it } from 'vitest';
import { ReachedSpeed } from '../../server/dist/api/reachedSpeed.js';

const device = (float32Flops: number): DeviceSpeed => ({
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
    speed.note('job', spec, slow, { isFullRank: false, seconds: expected / 2 });
  expect(speed.ratioOn(slow)).toBeUndefined();
  // A step that waited for something else moves nothing.
  speed.note('job', spec, slow, { isFullRank: false, seconds: 100 * expected });
  expect(speed.ratioOn(slow)).toBeCloseTo(0.5, 9);

  // What was reached is measured against one measurement; another one is other news.
  const fast = device(4e10);
  expect(speed.ratioOn(fast)).toBeUndefined();
  speed.note('job', spec, fast, { isFullRank: false, seconds: 1 });
  expect(speed.ratioOn(slow)).toBeUndefined();
});

it('holds full-rank steps against full-rank steps', () => {
  const spec = defaultRunSpec();
  const machine = device(1e10);
  const expected = secondsOf(stepTime({ ...spec, kind: 'fullRank', adapter: null }, machine));
  const speed = new ReachedSpeed();
  for (let step = 0; step < 30; step++)
    speed.note('job', spec, machine, { isFullRank: true, seconds: 3 * expected });
  expect(speed.ratioOn(machine)).toBeCloseTo(3, 9);
});
