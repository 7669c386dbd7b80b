import { expect, test } from 'vitest';
import { painter } from '../../cli/dist/comparisonText.js';
import { linePlot, type LinePlotOptions } from '../../cli/dist/linePlot.js';
import { axesOf, logarithmicTicks, ticksOf } from '../../cli/dist/plotScale.js';
import { sweepText } from '../../cli/dist/sweepText.js';
import { bestOf, type SweepRun } from '@relora/sdk';

const curve = (label: string, index: number, floor: number, isColored = false, end = 100) => ({
  label,
  points: Array.from({ length: end + 1 }, (_, x) => [x, floor + 6 * Math.exp(-x / 8)] as const),
  ...painter(index, isColored),
});
const plain: Omit<LinePlotOptions, 'axes'> = {
  width: 72,
  height: 14,
  xName: 'steps',
  showX: String,
  dim: (text) => text,
};
const drawn = (lines: ReturnType<typeof curve>[], options: Partial<LinePlotOptions> = {}) =>
  linePlot(lines, { ...plain, axes: axesOf(lines, { mayCutStart: true })!, ...options });

test('draws several curves, each with its own mark, without the steep start', () => {
  const lines = [curve('one', 0, 2), curve('two', 1, 2.4), curve('three, still running', 2, 3, false, 55)];
  expect(`\n${drawn(lines).join('\n')}\n`).toMatchSnapshot();
});

test('draws sweeps over a logarithmic axis, with what diverged in the table alone', () => {
  const scaleOf = (rank: number) => (rank === 16 ? 4 : null);
  const run = (rank: number, learningRate: number, loss: number | null, outcome = 'succeeded') =>
    ({
      kind: 'JOB_KIND_RELORA',
      rank,
      scale: scaleOf(rank),
      learningRate,
      job: { name: `jobs/sweep-${rank}-${learningRate}` },
      evaluationLoss: loss,
      outcome,
    }) as SweepRun;
  const runs = [
    run(8, 1e-4, 4.1),
    run(8, 1e-3, 3.6),
    run(8, 1e-2, 7, 'diverged'),
    run(8, 1e-1, null, 'failed'),
  ];
  const atEdge = [run(16, 1e-4, 3.9), run(16, 1e-3, 3.5)];
  const lost = [run(32, 1e-1, 8, 'diverged')];
  const variantOf = (rank: number, tried: SweepRun[]) =>
    bestOf({ kind: 'JOB_KIND_RELORA', rank, scale: scaleOf(rank) }, tried);
  const variants = [variantOf(8, runs), variantOf(16, atEdge), variantOf(32, lost)];
  expect(variants.map(({ best, isBestAtEdge }) => [best?.learningRate, isBestAtEdge])).toEqual([
    [1e-3, false],
    [1e-3, true],
    [undefined, false],
  ]);
  const text = sweepText({ id: 'one', variants }, { width: 72, height: 12, isColored: false });
  expect(`\n${text.join('\n')}\n`).toMatchSnapshot();
});

test('every line fits in every size, also of flat curves and single points', () => {
  const flat = {
    label: 'flat',
    points: [
      [0, 1],
      [9, 1],
    ] as const,
    ...painter(3, false),
  };
  const single = { label: 'single', points: [[4, 1]] as const, ...painter(4, false) };
  for (let width = 24; width <= 130; width += 7) {
    for (const height of [5, 12, 30]) {
      for (const lines of [[curve('one', 0, 2), curve('two', 1, 2.4)], [flat], [single], [flat, single]]) {
        const plot = linePlot(lines, { ...plain, width, height, axes: axesOf(lines)! });
        expect(plot).toHaveLength(height);
        for (const line of plot) expect([...line].length).toBeLessThanOrEqual(width);
      }
    }
  }
});

test('colors change nothing but colors', () => {
  const lines = (isColored: boolean) => [curve('one', 0, 2, isColored), curve('two', 1, 2.4, isColored)];
  const dim = (text: string) => `\u001b[2m${text}\u001b[0m`;
  const colored = drawn(lines(true), { dim }).map((line) => line.replace(/\u001b\[[\d;]*m/g, '').trimEnd());
  expect(colored).toEqual(drawn(lines(false)).map((line) => line.trimEnd()));
});

test('ticks are round numbers inside the range', () => {
  expect(ticksOf({ low: 3.12, high: 4.43 }, 5)).toEqual([3.5, 4]);
  expect(ticksOf({ low: 0, high: 0.3 }, 3)).toEqual([0, 0.1, 0.2, 0.3]);
  expect(ticksOf({ low: 2, high: 2 }, 5)).toEqual([2]);
  expect(logarithmicTicks({ low: 1e-4, high: 1e-3 })).toEqual([1e-4, 2e-4, 5e-4, 1e-3]);
});
