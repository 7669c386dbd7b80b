import { logarithmicTicks, shareOf, ticksOf, type PlotAxes, type PlotLine } from '../plotScale.js';
import { escaped, toneOf } from './page.js';

export interface ChartOptions {
  title: string;
  axes: PlotAxes;
  xName: string;
  showX(value: number): string;
  showY(value: number): string;
  /** Draw points, not only curves: for few values. */
  hasPoints?: boolean;
  /** Crosses below the top edge: x values that were tried but gave no y value. */
  crosses?: readonly { tone: number; x: number }[];
}

const width = 560;
const height = 300;
const plot = { left: 58, right: 24, top: 12, bottom: 42 };
const plotWidth = width - plot.left - plot.right;
const plotHeight = height - plot.top - plot.bottom;

/** Curves with common axes as an SVG figure. The tone of a curve is its index in the list, on the whole page. */
export function lineChart(lines: readonly PlotLine[], options: ChartOptions): string {
  const { title, axes, xName, showX, showY, hasPoints = false, crosses = [] } = options;
  const xOf = (value: number) => round(plot.left + shareOf(value, axes.x, axes.isLogarithmic) * plotWidth);
  const yOf = (value: number) => round(plot.top + (1 - shareOf(value, axes.y)) * plotHeight);
  const rules = ticksOf(axes.y, 5).map(
    (tick) => `<path class="rule" d="M${plot.left} ${yOf(tick)}h${plotWidth}"/>
<text x="${plot.left - 8}" y="${yOf(tick) + 4}" text-anchor="end">${escaped(showY(tick))}</text>`,
  );
  const ticks = (axes.isLogarithmic ? logarithmicTicks(axes.x) : ticksOf(axes.x, 6)).map(
    (tick) => `<path class="rule" d="M${xOf(tick)} ${plot.top + plotHeight}v5"/>
<text x="${xOf(tick)}" y="${height - 22}" text-anchor="middle">${escaped(showX(tick))}</text>`,
  );
  const curves = lines.map(({ label, points }, index) => {
    const path = points.map(([x, y]) => `${xOf(x)} ${yOf(y)}`).join('L');
    const dots = hasPoints || points.length === 1 ? points : [];
    const circles = dots.map(([x, y]) => `<circle cx="${xOf(x)}" cy="${yOf(y)}" r="3.5"/>`).join('');
    return path === ''
      ? ''
      : `<g class="${toneOf(index)}"><title>${escaped(label)}</title><path class="line" d="M${path}"/>${circles}</g>`;
  });
  // An arrow where a curve enters from above: without it, the curve would look as if it begins late.
  const arrows = lines.flatMap(({ points }, index) => {
    const first = points.findIndex(([, y]) => y <= axes.y.high);
    if (first === 0 || points.length === 0) return [];
    const x = xOf(points[Math.max(0, first)]![0]);
    return [`<path class="line ${toneOf(index)}" d="M${x - 4} ${plot.top + 6}l4 -7l4 7"/>`];
  });
  const failed = crosses.map(
    ({ tone, x }) =>
      `<path class="line ${toneOf(tone)}" d="M${xOf(x) - 5} ${plot.top + 5}l10 10m0 -10l-10 10"/>`,
  );
  const clip = `clip-${title.replace(/\W+/g, '-')}`;
  return `<figure>
<figcaption>${escaped(title)}</figcaption>
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">
<clipPath id="${clip}"><rect x="${plot.left - 5}" y="${plot.top - 5}" width="${plotWidth + 10}" height="${plotHeight + 10}"/></clipPath>
${rules.join('\n')}
${ticks.join('\n')}
<text x="${plot.left + plotWidth}" y="${height - 4}" text-anchor="end">${escaped(xName)}</text>
<g clip-path="url(#${clip})">
${[...curves, ...arrows, ...failed].join('\n')}
</g>
</svg>
</figure>`;
}

function round(value: number): number {
  return Math.round(10 * value) / 10;
}
