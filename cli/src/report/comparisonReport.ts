import { Metric, type CompareJobsResponse } from '@relora/sdk';
import { costColumns, jobLabels, meanColumns, qualityColumns, settingColumns } from '../comparisonTable.js';
import { evaluationRows, valueText } from '../comparisonText.js';
import { figure } from '../format.js';
import { axesOf } from '../plotScale.js';
import { curveOf, plotAxes, type PlotAxis } from '../plottedMetrics.js';
import { lineChart } from './lineChart.js';
import { seedMeans, type SeedMean } from '../seedMeans.js';
import { legendHtml, notesHtml, page, tableHtml } from './page.js';

interface Chart {
  title: string;
  metric: Metric;
  axis: PlotAxis;
  hasPoints?: boolean;
  mayCutStart?: boolean;
}

const charts: readonly Chart[] = [
  {
    title: 'Held-out loss by tokens',
    metric: Metric.EVALUATION_LOSS,
    axis: 'tokens',
    hasPoints: true,
    mayCutStart: true,
  },
  {
    title: 'Held-out loss by training time',
    metric: Metric.EVALUATION_LOSS,
    axis: 'seconds',
    hasPoints: true,
    mayCutStart: true,
  },
  { title: 'Training loss by tokens', metric: Metric.LOSS, axis: 'tokens', mayCutStart: true },
  { title: 'Training loss by training time', metric: Metric.LOSS, axis: 'seconds', mayCutStart: true },
  { title: 'Learning rate by steps', metric: Metric.LEARNING_RATE, axis: 'step' },
  {
    title: 'Effective rank of the change, at restarts',
    metric: Metric.EFFECTIVE_RANK,
    axis: 'step',
    hasPoints: true,
  },
];

/** Series that the report draws. */
export const reportMetrics = [...new Set(charts.map(({ metric }) => metric))];

/** A comparison as a page: curves, tables, differences and warnings. */
export function comparisonReport(comparison: CompareJobsResponse, time: Date): string {
  const { jobs, reference, differences, warnings, bucketStepCount } = comparison;
  const labels = jobLabels(jobs);
  const referenceLabel = labels[jobs.findIndex(({ name }) => name === reference)];
  const head = (columns: readonly { title: string; meaning: string }[]) => [{ title: 'job' }, ...columns];
  const rowsOf = (columns: typeof settingColumns) =>
    jobs.map((job, tone) => ({
      tone,
      cells: [labels[tone]!, ...columns.map(({ cell }) => cell(job, comparison))],
    }));
  const buckets = bucketStepCount > 1 ? `; a point is the mean of ${bucketStepCount} steps` : '';
  return page(
    'Comparison of training jobs',
    `${jobs.length} jobs compared with ${referenceLabel} on ${time.toISOString().slice(0, 16).replace('T', ' ')} UTC${buckets}`,
    [
      notesHtml(warnings),
      legendHtml(labels),
      `<div class="charts">${charts.map((chart) => drawn(comparison, labels, chart)).join('\n')}</div>`,
      '<h2>Results</h2>',
      tableHtml(head(qualityColumns), rowsOf(qualityColumns)),
      ...evaluationsHtml(comparison, labels),
      ...meansHtml(seedMeans(comparison)),
      '<h2>Cost</h2>',
      tableHtml(head(costColumns), rowsOf(costColumns)),
      '<h2>Main settings</h2>',
      tableHtml(head(settingColumns), rowsOf(settingColumns)),
      '<h2>Settings that differ</h2>',
      `<div class="wrapped">${tableHtml(
        [{ title: 'setting' }, ...labels.map((title) => ({ title }))],
        differences.map(({ field, values }) => ({ cells: [field, ...values.map(valueText)] })),
      )}</div>`,
    ],
  );
}

function evaluationsHtml({ jobs }: CompareJobsResponse, labels: readonly string[]): string[] {
  const rows = evaluationRows(jobs);
  if (rows.length === 0) return [];
  const heads = ['evaluation', ...labels].map((title) => ({ title }));
  return [
    '<h2>Named evaluations</h2>',
    tableHtml(
      heads,
      rows.map((cells) => ({ cells })),
    ),
  ];
}

function meansHtml(means: readonly SeedMean[]): string[] {
  if (means.length === 0) return [];
  const rows = means.map((mean) => ({ cells: [mean.label, ...meanColumns.map(({ cell }) => cell(mean))] }));
  return ['<h2>Means over seeds</h2>', tableHtml([{ title: 'settings' }, ...meanColumns], rows)];
}

function drawn({ jobs }: CompareJobsResponse, labels: readonly string[], chart: Chart): string {
  const { title, metric, axis, hasPoints = false, mayCutStart = false } = chart;
  const lines = jobs.map((job, index) => curveOf(job, labels[index]!, metric, axis));
  const axes = axesOf(lines, { mayCutStart });
  if (axes === null) return '';
  const { name, show } = plotAxes[axis];
  return lineChart(lines, { title, axes, xName: name, showX: show, showY: figure, hasPoints });
}
