import { dashOf, margin, round, text, toneOf, width } from './svg.mjs';

const plotHeight = 230;
const axisWidth = 52;
const legendRowHeight = 20;
const tickCount = 5;

/** Curves { label, points: [x, y][], band?: [x, low, high][] } in one pair of axes, with a legend below. */
export function linePanel({ title, lines }) {
  const plotWidth = width - 2 * margin - axisWidth;
  const x = scale(
    lines.flatMap(({ points }) => points.map(([x]) => x)),
    0,
    plotWidth,
  );
  const y = scale(
    lines.flatMap(({ points, band = [] }) => [
      ...points.map(([, y]) => y),
      ...band.flatMap(([, low, high]) => [low, high]),
    ]),
    plotHeight,
    0,
  );
  const rules = y.ticks.map(
    (tick) => `<path class="rule" d="M${axisWidth} ${round(y.at(tick))}h${plotWidth}"/>
${text(axisWidth - 8, y.at(tick) + 4, y.shown(tick), 'faint', 'end')}`,
  );
  const marks = x.ticks.map((tick) =>
    text(axisWidth + x.at(tick), plotHeight + 20, x.shown(tick), 'faint', 'middle'),
  );
  const pathOf = (points) =>
    `M${points.map(([px, py]) => `${round(axisWidth + x.at(px))} ${round(y.at(py))}`).join('L')}`;
  // Drawn below all curves, so that a wide band hides none.
  const bands = lines.map(({ band = [] }, index) => {
    if (band.length === 0) return '';
    const upper = band.map(([px, , high]) => [px, high]);
    const lower = band.map(([px, low]) => [px, low]).reverse();
    return `<path class="${toneOf(index)} band" d="${pathOf([...upper, ...lower])}Z"/>`;
  });
  const curves = lines.map(
    ({ points }, index) => `<path class="${toneOf(index)} line"${dashOf(index)} d="${pathOf(points)}"/>`,
  );
  const legend = lines.map(({ label }, index) => {
    const top = plotHeight + 44 + index * legendRowHeight;
    return `<path class="${toneOf(index)} key"${dashOf(index)} d="M${axisWidth} ${top - 7}h18"/>
${text(axisWidth + 26, top - 2, label)}`;
  });
  return {
    title,
    height: plotHeight + 36 + lines.length * legendRowHeight,
    content: [...rules, ...marks, ...bands, ...curves, ...legend].join('\n'),
  };
}

/** Maps values to positions between `from` and `to`, with round numbers for tick marks. */
function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const rough = span / tickCount;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick * step <= high; tick++) ticks.push(tick * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  return {
    ticks,
    at: (value) => from + ((to - from) * (value - low)) / span,
    shown: (tick) => tick.toFixed(digits),
  };
}
