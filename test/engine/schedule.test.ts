import { describe, expect, it } from 'vitest';
import { cycleAt, cyclicalCosine, jaggedCosine, Schedule } from '@relora/engine/plan';

const paper = {
  stepCount: 20_000,
  warmupStepCount: 500,
  restartWarmupStepCount: 100,
  cycleStepCount: 5000,
  minRatio: 0.1,
};

function scheduleOf(overrides: Partial<ConstructorParameters<typeof Schedule>[0]> = {}) {
  return new Schedule({
    kind: 'relora',
    stepCount: 20_000,
    warmStart: { stepCount: 0, learningRate: 5e-4, warmupStepCount: 100 },
    adapter: {
      cycleStepCount: 5000,
      restartWarmupStepCount: 100,
      cycleGrowth: 1,
      fullRankStepCount: 0,
    },
    learningRate: { peak: 1e-3, schedule: 'jaggedCosine', warmupStepCount: 500, minRatio: 0.1 },
    ...overrides,
  });
}

describe('the jagged cosine', () => {
  // Computed with the public function of the paper's authors (relora.md §3), which prints nine digits.
  const reference: [step: number, multiplier: number][] = [
    [0, 0],
    [1, 0.002],
    [250, 0.5],
    [500, 1],
    [4999, 0.886877908],
    [5000, 0],
    [5001, 0.008819788],
    [5050, 0.440989403],
    [5100, 0.881978807],
    [9999, 0.568192112],
    [10_000, 0],
    [10_100, 0.560873685],
    [19_999, 0.100000006],
  ];

  it.each(reference)('multiplies the rate of step %i by %f', (step, multiplier) => {
    expect(Math.abs(jaggedCosine(step, paper) - multiplier)).toBeLessThan(1e-9);
    expect(Math.abs(scheduleOf().learningRateAt(step) / 1e-3 - multiplier)).toBeLessThan(1e-9);
  });

  it('is one cosine over the whole run outside of the warm-ups', () => {
    const plain = { ...paper, cycleStepCount: paper.stepCount };
    for (const step of [500, 4999, 5100, 7777, 10_100, 19_999]) {
      expect(jaggedCosine(step, paper)).toBe(jaggedCosine(step, plain));
    }
  });
});

describe('a short last cycle', () => {
  it('that ends within its warm-up climbs towards the last value of the cosine, not past it', () => {
    const shape = { ...paper, stepCount: 10_060, restartWarmupStepCount: 4000 };
    for (const step of [10_000, 10_001, 10_030, 10_059]) {
      expect(jaggedCosine(step, shape)).toBeCloseTo(((step - 10_000) / 4000) * shape.minRatio, 12);
    }
  });
});

describe('restarts', () => {
  it('come at every multiple of the cycle within the phase, never at its first step or its end', () => {
    expect(scheduleOf().restartSteps()).toEqual([5000, 10_000, 15_000]);
  });

  it('stay aligned with the rate after a warm start, and the first one has its warm-up', () => {
    const schedule = scheduleOf({ warmStart: { stepCount: 777, learningRate: 5e-4, warmupStepCount: 100 } });
    expect(schedule.stepCount).toBe(20_777);
    expect(schedule.restartSteps()).toEqual([5777, 10_777, 15_777]);
    for (const [index, step] of schedule.restartSteps().entries()) {
      expect(schedule.restartNumberAt(step)).toBe(index + 1);
      expect(schedule.restartNumberAt(step - 1)).toBe(0);
      expect(schedule.learningRateAt(step)).toBe(0);
      expect(schedule.learningRateAt(step + 1)).toBeGreaterThan(0);
      expect(schedule.learningRateAt(step + 1)).toBeLessThan(0.02e-3);
    }
    expect(schedule.beginsAdapters(777)).toBe(true);
    expect(schedule.phaseAt(776)).toBe('warmStart');
    expect(schedule.phaseAt(777)).toBe('adapter');
    expect(schedule.learningRateAt(777 + 500)).toBe(1e-3);
  });

  it('do not happen in lora and full-rank jobs', () => {
    expect(scheduleOf({ kind: 'lora' }).restartSteps()).toEqual([]);
    expect(scheduleOf({ kind: 'lora' }).restartNumberAt(5000)).toBe(0);
    expect(scheduleOf({ kind: 'fullRank', adapter: null }).restartSteps()).toEqual([]);
  });

  it('have warm-ups that a point of a coarse curve can be moved out of', () => {
    const warmStart = { stepCount: 300, learningRate: 5e-4, warmupStepCount: 100 };
    const schedule = scheduleOf({ warmStart });
    const moved = (step: number) => schedule.afterRestartWarmup(step, 101);
    expect([0, 300, 799, 5299].map(moved)).toEqual([0, 300, 799, 5299]); // the first warm-up is not a dip
    expect([5300, 5399, 5400, 10_350].map(moved)).toEqual([5400, 5400, 5400, 10_400]);
    expect(schedule.learningRateAt(5400)).toBeGreaterThan(schedule.learningRateAt(5399));
    expect(schedule.afterRestartWarmup(5300, 100)).toBe(5300); // a warm-up this long is visible in a plot
    const short = { cycleStepCount: 10, restartWarmupStepCount: 20, cycleGrowth: 1, fullRankStepCount: 0 };
    expect(scheduleOf({ adapter: short }).afterRestartWarmup(12, 101)).toBe(19);
    expect(scheduleOf({ kind: 'lora' }).afterRestartWarmup(5000, 101)).toBe(5000);
  });
});

describe('the other schedules', () => {
  it('a full-rank job has no warm start and warms up once', () => {
    const schedule = scheduleOf({
      kind: 'fullRank',
      adapter: null,
      warmStart: { stepCount: 500, learningRate: 1, warmupStepCount: 1 },
    });
    expect(schedule.stepCount).toBe(20_000);
    expect(schedule.phaseAt(0)).toBe('fullRank');
    expect(schedule.learningRateAt(5000)).toBeGreaterThan(0.88e-3);
  });

  it('a warm start climbs from its first step, which is not lost at rate 0', () => {
    const schedule = scheduleOf({ warmStart: { stepCount: 300, learningRate: 5e-4, warmupStepCount: 100 } });
    expect(schedule.learningRateAt(0)).toBeCloseTo(5e-6, 12);
    expect(schedule.learningRateAt(99)).toBeCloseTo(5e-4, 12);
    expect(schedule.learningRateAt(299)).toBeCloseTo(5e-4, 12);
  });

  it('the cyclical cosine spends a whole cosine in every cycle', () => {
    expect(cyclicalCosine(500, paper)).toBe(1);
    expect(cyclicalCosine(5000, paper)).toBe(0);
    expect(cyclicalCosine(5100, paper)).toBe(1);
    expect(cyclicalCosine(9999, paper)).toBeLessThan(0.1001);
  });

  it('linear falls to the least ratio, constant stays', () => {
    const linear = scheduleOf({
      learningRate: { peak: 1, schedule: 'linear', warmupStepCount: 0, minRatio: 0.1 },
    });
    expect(linear.learningRateAt(0)).toBe(1);
    expect(linear.learningRateAt(10_000)).toBeCloseTo(0.55, 12);
    const constant = scheduleOf({
      learningRate: { peak: 1, schedule: 'constant', warmupStepCount: 10, minRatio: 0.1 },
    });
    expect(constant.learningRateAt(5)).toBe(0.5);
    expect(constant.learningRateAt(19_999)).toBe(1);
  });
});

describe('cycles that grow', () => {
  /** Directly from the definition, one cycle after another. */
  const plainly = (t: number, shape: { cycleStepCount: number; cycleGrowth: number }) => {
    let start = 0;
    for (let index = 0; ; index++) {
      const stepCount = Math.round(shape.cycleStepCount * shape.cycleGrowth ** index);
      if (t < start + stepCount) return { index, start, stepCount };
      start += stepCount;
    }
  };

  it('are found where the definition has them, from any place before', () => {
    for (const cycleGrowth of [1.0000001, 1.0001, 1.01, 1.4, 10]) {
      for (const cycleStepCount of [1, 2, 7, 1000]) {
        const shape = { cycleStepCount, cycleGrowth };
        for (let t = 0; t < 20_000; t += 1 + Math.floor(t / 7)) {
          const expected = plainly(t, shape);
          expect(cycleAt(t, shape)).toEqual(expected);
          expect(cycleAt(t, shape, plainly(Math.floor(t / 2), shape))).toEqual(expected);
          expect(cycleAt(t, shape, plainly(t + 5, shape))).toEqual(expected);
        }
      }
    }
  });

  it.each([
    ['jaggedCosine', 1, 1, [1]],
    ['jaggedCosine', 1, 7, [1, 1, 1]],
    ['jaggedCosine', 2, 1, [1]],
    ['jaggedCosine', 2, 2, [0, 1]],
    ['jaggedCosine', 2, 7, [0, 1, 1]],
    ['cosine', 2, 7, [0, 1]],
    ['jaggedCosine', 2, 45, [0, 1 / 2, 1]],
    ['jaggedCosine', 1, 45, [0, 1 / 2, 1]],
  ] as const)(
    'with %s and version %i begin %i full-rank steps at a share of their rate',
    (schedule, fullRankWarmup, fullRankStepCount, shares) => {
      const spec = {
        kind: 'relora' as const,
        stepCount: 200,
        warmStart: { stepCount: 0, learningRate: 1e-3, warmupStepCount: 0 },
        adapter: {
          fullRankStepCount,
          restartWarmupStepCount: 0,
          cycleStepCount: 100,
          cycleGrowth: 1,
        } as never,
        learningRate: { peak: 1e-3, schedule, warmupStepCount: 0, minRatio: 1 },
        streams: { fullRankWarmup },
      };
      const rates = shares.map((_, index) => new Schedule(spec).learningRateAt(100 + index));
      rates.forEach((rate, index) => expect(rate).toBeCloseTo(1e-3 * shares[index]!, 12));
    },
  );

  it('cost little to look up, however many there are', () => {
    for (const [cycleStepCount, cycleGrowth] of [
      [2, 1],
      [2, 1.0000001],
      [1, 1.0001],
      [3, 1.001],
    ] as const) {
      let looks = 0;
      const adapter = {
        fullRankStepCount: 1,
        restartWarmupStepCount: 0,
        cycleStepCount,
        get cycleGrowth() {
          return cycleGrowth;
        },
      };
      const shape = {
        cycleStepCount,
        get cycleGrowth() {
          looks++;
          return cycleGrowth;
        },
      };
      cycleAt(499_999, shape);
      expect(looks).toBeLessThan(20_000);
      // The count by formula equals the length of the list.
      const spec = {
        kind: 'relora' as const,
        stepCount: 500_000,
        warmStart: { stepCount: 0, learningRate: 1e-3, warmupStepCount: 0 },
        adapter: adapter as never,
        learningRate: { peak: 1e-3, schedule: 'jaggedCosine' as const, warmupStepCount: 1, minRatio: 0.1 },
      };
      const schedule = new Schedule(spec);
      expect(schedule.restartSteps(3)).toHaveLength(3);
      expect(schedule.restartCount).toBe(schedule.restartSteps().length);
      expect(schedule.restartCountUntil(schedule.restartSteps()[2]!)).toBe(3);
      const between = schedule.restartSteps().map((step) => Math.min(1, schedule.stepCount - step));
      expect(schedule.fullRankStepCountBetween).toBe(between.reduce((sum, count) => sum + count, 0));
    }
  });
});
