import { expect, test } from 'vitest';
import { lineChart } from '../../cli/dist/report/lineChart.js';

const axes = { x: { low: 0, high: 100 }, y: { low: 0, high: 4 }, isLogarithmic: false };
const options = { title: 'Loss', axes, xName: 'step', showX: String, showY: String };

/** The x positions of a chart's arrows. */
function arrowsOf(...curves: [x: number, y: number][][]): number[] {
  const lines = curves.map((points, index) => ({ label: `run ${index}`, points }));
  const svg = lineChart(lines, options);
  return [...svg.matchAll(/d="M([\d.]+) 18l4 -7l4 7"/g)].map(([, left]) =>
    Math.round(((Number(left) + 4 - 58) / (560 - 58 - 24)) * 100),
  );
}

test('a curve that comes in from above has an arrow where it does, and no other curve has one', () => {
  const within: [number, number][] = [
    [0, 4],
    [50, 2],
  ];
  const fromAbove: [number, number][] = [
    [0, 9],
    [20, 6],
    [40, 3],
  ];
  expect(arrowsOf(within)).toEqual([]);
  expect(arrowsOf(fromAbove)).toEqual([40]);
  expect(arrowsOf(within, fromAbove, [])).toEqual([40]);
  // A curve that is completely outside is still shown by an arrow.
  expect(arrowsOf([[30, 9]])).toEqual([30]);
});
