import type { Sweep } from '@relora/sdk';
import { figure } from '../format.js';
import { axesOf } from '../plotScale.js';
import { adviceText, pointsOf, rateText, sweepHead, sweepRows, variantLabel } from '../sweepText.js';
import { lineChart } from './lineChart.js';
import { escaped, legendHtml, page, tableHtml } from './page.js';

/** A sweep as a page. Runs that diverged are crosses at the top. */
export function sweepReport({ id, variants }: Sweep, time: Date): string {
  const labels = variants.map(variantLabel);
  const lines = variants.map((variant, index) => ({ label: labels[index]!, points: pointsOf(variant) }));
  const axes = axesOf(lines, { isLogarithmic: true });
  const rates = variants.flatMap(({ runs }) => runs.map(({ learningRate }) => learningRate));
  const crosses = variants.flatMap(({ runs }, tone) =>
    runs.flatMap(({ outcome, learningRate }) => (outcome === 'diverged' ? [{ tone, x: learningRate }] : [])),
  );
  const chart =
    axes === null
      ? '<p>No run has a held-out loss.</p>'
      : lineChart(lines, {
          title: 'Held-out loss by learning rate',
          axes: { ...axes, x: { low: Math.min(...rates), high: Math.max(...rates) } },
          xName: 'learning rate; a cross for one that diverged',
          showX: rateText,
          showY: figure,
          hasPoints: true,
          crosses,
        });
  const rows = variants.flatMap((variant, tone) =>
    sweepRows(variant).map((cells, index) => ({ tone, isBest: variant.runs[index] === variant.best, cells })),
  );
  return page(
    'Sweep of the learning rate',
    `Sweep ${id} on ${time.toISOString().slice(0, 16).replace('T', ' ')} UTC`,
    [
      legendHtml(labels),
      `<div class="charts">${chart}</div>`,
      '<h2>Runs</h2>',
      tableHtml(
        sweepHead.map((title) => ({ title })),
        rows,
      ),
      '<h2>What to use</h2>',
      ...variants.flatMap(adviceText).map((line) => `<p>${escaped(line)}</p>`),
    ],
  );
}
