import { spanOf } from '@relora/engine/plan';
import { expect, it } from 'vitest';
import { StepReports } from '../../server/dist/trainer/process/stepReports.js';
import { stepBody } from './stepBody.mjs';

/** The reports of a run with this many steps at this rate, with their times. */
function run(stepCount: number, rate: number, everyStep = false) {
  const reports = new StepReports(everyStep);
  const sent: { step: number; first: number; timeMs: number; loss: { min: number; max: number } }[] = [];
  const note = (timeMs: number) => (body: ReturnType<typeof stepBody>) => {
    const { firstStep, loss } = spanOf(body);
    sent.push({ step: body.step, first: firstStep, timeMs, loss });
  };
  for (let step = 0; step < stepCount; step++) {
    const timeMs = (step * 1000) / rate;
    reports.take(stepBody(step, { loss: Math.sin(step) }), timeMs).forEach(note(timeMs));
  }
  reports.rest((stepCount * 1000) / rate).forEach(note((stepCount * 1000) / rate));
  return sent;
}

it.each([1, 9, 40, 41.7, 333, 5000])(
  'of %d steps a second at most ten are reported, and all of them stand in some report',
  (rate) => {
    const steps = 4000;
    const sent = run(steps, rate);
    for (const [index, { timeMs }] of sent.entries())
      if (index > 0 && index < sent.length - 1)
        expect(timeMs - sent[index - 1]!.timeMs).toBeGreaterThanOrEqual(100 - 1e-6);
    let next = 0;
    for (const { first, step, loss } of sent) {
      expect(first).toBe(next);
      next = step + 1;
      const own = Array.from({ length: next - first }, (_, index) => Math.sin(first + index));
      expect(loss).toMatchObject({ min: Math.min(...own), max: Math.max(...own) });
    }
    expect(next).toBe(steps);
    // Never more than two intervals late, so that a view stays live.
    expect(Math.max(...sent.slice(1).map(({ timeMs }, index) => timeMs - sent[index]!.timeMs))).toBeLessThan(
      Math.max(220, 1100 / rate),
    );
  },
);

it('runs of different speed report many of the same steps by themselves, whose losses can be compared', () => {
  const [one, other] = [run(4000, 410), run(4000, 777)].map((sent) => new Set(sent.map(({ step }) => step)));
  expect([...other!].filter((step) => one!.has(step)).length).toBeGreaterThan(other!.size / 3);
});

it('every step is reported where it is asked for', () => {
  expect(run(100, 1000, true).map(({ step }) => step)).toEqual(
    Array.from({ length: 100 }, (_, step) => step),
  );
});

it('a step that was skipped is reported at once, and omitted ones apart from others', () => {
  const reports = new StepReports(false);
  const steps = (bodies: ReturnType<typeof stepBody>[]) => bodies.map(({ step }) => step);
  expect(steps(reports.take(stepBody(0), 0))).toEqual([0]);
  expect(steps(reports.take(stepBody(1), 1))).toEqual([]);
  expect(steps(reports.take(stepBody(2, { loss: NaN, skipped: true }), 2))).toEqual([2]);
  expect(steps(reports.take(stepBody(3), 3))).toEqual([]);
  expect(steps(reports.take(stepBody(4, { omitted: true }), 4))).toEqual([3]);
  expect(steps(reports.take(stepBody(5, { omitted: true }), 5))).toEqual([]);
  const last = reports.take(stepBody(6), 6);
  expect(steps(last)).toEqual([5]);
  expect(last[0]).toMatchObject({ omitted: true, span: { omittedCount: 2, loss: { valueCount: 0 } } });
});
