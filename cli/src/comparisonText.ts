import type { ComparedJob, CompareJobsResponse } from '@relora/sdk';
import {
  costColumns,
  jobLabels,
  meanColumns,
  qualityColumns,
  settingColumns,
  type Column,
} from './comparisonTable.js';
import { evaluationFigure } from './evaluationText.js';
import { table } from './format.js';
import { linePlot, type DrawnLine } from './linePlot.js';
import { axesOf } from './plotScale.js';
import { curveOf, plotAxes, plotMetrics, type PlotAxis, type PlotMetric } from './plottedMetrics.js';
import { printable } from './screenText.js';
import { seedMeans, type SeedMean } from './seedMeans.js';

export interface ComparisonView {
  metric: PlotMetric;
  axis: PlotAxis;
  width: number;
  height: number;
  isColored: boolean;
}

const marks = [...'●▲■◆○△□◇★+×*#@%&'];
const colors = ['36', '33', '35', '32', '34', '31', '96', '93', '95', '92', '94', '91'];
const differencesShownMax = 24;

/** A comparison for a terminal: curves with a legend, the table in two parts, differences and warnings. */
export function comparisonText(comparison: CompareJobsResponse, view: ComparisonView): string[] {
  const { jobs, differences, warnings } = comparison;
  const labels = jobLabels(jobs).map(printable);
  const { metric, title } = plotMetrics[view.metric];
  const painters = jobs.map((_, index) => painter(index, view.isColored));
  const lines = jobs.map((job, index) => ({
    ...curveOf(job, labels[index]!, metric, view.axis),
    ...painters[index]!,
  }));
  // Settings that a kind does not have differ with the kind, which is shown already.
  const real = differences.filter(({ values }) => new Set(values.filter(Boolean)).size > 1);
  const shown = real.slice(0, differencesShownMax);
  return [
    ...plotText(title, lines, view),
    '',
    ...tableText(comparison, labels, painters, [...settingColumns, ...qualityColumns]),
    '',
    ...tableText(comparison, labels, painters, costColumns),
    '',
    ...datasetsText(comparison, labels),
    ...evaluationsText(comparison, labels),
    ...meansText(seedMeans(comparison)),
    ...settingsText(labels, shown),
    ...(shown.length < real.length ? [`  and ${real.length - shown.length} more`] : []),
    ...warnings.map(({ reason, message }) => `warning ${reason}: ${printable(message)}`),
  ];
}

/** The held-out loss by data set, if a job has several. */
function datasetsText({ jobs }: CompareJobsResponse, labels: readonly string[]): string[] {
  if (jobs.every(({ evaluationDatasets }) => evaluationDatasets.length < 2)) return [];
  const names = [...new Set(jobs.flatMap((job) => job.evaluationDatasets.map(({ dataset }) => dataset)))];
  const rows = names.map((name) => [
    name,
    ...jobs.map(({ evaluationDatasets }) => {
      const found = evaluationDatasets.find(({ dataset }) => dataset === name);
      return found === undefined || found.tokenCount === 0 ? '–' : found.loss.toFixed(4);
    }),
  ]);
  return [...table([['held-out loss of', ...labels], ...rows]), ''];
}

/** The last result of each named evaluation. */
function evaluationsText({ jobs }: CompareJobsResponse, labels: readonly string[]): string[] {
  const rows = evaluationRows(jobs);
  return rows.length === 0 ? [] : [...table([['evaluation', ...labels], ...rows]), ''];
}

/** Names of all evaluations, and the result in each job. */
export function evaluationRows(jobs: readonly ComparedJob[]): string[][] {
  const names = [...new Set(jobs.flatMap(({ evaluations }) => evaluations.map(({ name }) => name)))];
  return names.map((name) => [
    name,
    ...jobs.map(({ evaluations }) => {
      const found = evaluations.find((evaluation) => evaluation.name === name);
      return found === undefined ? '–' : evaluationFigure(found);
    }),
  ]);
}

/** What distinguishes the curve at an index from the others. */
export function painter(index: number, isColored: boolean): Pick<DrawnLine, 'mark' | 'paint'> {
  const color = colors[index % colors.length]!;
  return {
    mark: marks[index % marks.length]!,
    paint: (text) => (isColored ? `\u001b[${color}m${text}\u001b[0m` : text),
  };
}

function plotText(title: string, lines: readonly DrawnLine[], view: ComparisonView): string[] {
  const axes = axesOf(lines, { mayCutStart: true });
  if (axes === null) return [`No ${title} yet.`];
  const { name, show } = plotAxes[view.axis];
  const dim = (text: string) => (view.isColored ? `\u001b[2m${text}\u001b[0m` : text);
  const plot = linePlot(lines, { ...view, axes, xName: name, showX: show, dim });
  const legend = lines.map(({ mark, paint, label }) => ` ${paint(mark)} ${label}`);
  return [` ${title}`, ...plot, ...legend];
}

function tableText(
  comparison: CompareJobsResponse,
  labels: readonly string[],
  painters: readonly Pick<DrawnLine, 'mark' | 'paint'>[],
  columns: readonly Column[],
): string[] {
  const cellsOf = (job: ComparedJob) => columns.map(({ cell }) => cell(job, comparison));
  const rows = comparison.jobs.map((job, index) => [painters[index]!.mark, labels[index]!, ...cellsOf(job)]);
  const [head, ...body] = table([['', 'job', ...columns.map(({ title }) => title)], ...rows]);
  // Colored after the columns are laid out, because escape codes have no width.
  return [
    ` ${head}`,
    ...body.map((line, index) => ` ${painters[index]!.paint(line.slice(0, 1))}${line.slice(1)}`),
  ];
}

function meansText(means: readonly SeedMean[]): string[] {
  if (means.length === 0) return [];
  const rows = means.map((mean) => [printable(mean.label), ...meanColumns.map(({ cell }) => cell(mean))]);
  const lines = table([['', ...meanColumns.map(({ title }) => title)], ...rows]);
  return [' means over seeds', ...lines.map((line) => `  ${line}`), ''];
}

function settingsText(labels: readonly string[], differences: CompareJobsResponse['differences']): string[] {
  if (differences.length === 0) return [];
  const short = (json: string): string => {
    const text = valueText(json);
    return text.length > valueLengthMax ? `${text.slice(0, valueLengthMax - 1)}…` : text;
  };
  const rows = differences.map(({ field, values }) => [field, ...values.map(short)]);
  return [' settings that differ', ...table([['', ...labels], ...rows]).map((line) => `  ${line}`)];
}

/** Longest value of a setting in the terminal; a report shows all of it. */
const valueLengthMax = 40;

/** JSON of a setting as a person would write it. */
export function valueText(json: string): string {
  if (json === '') return '–';
  const value = JSON.parse(json) as unknown;
  const written = (part: unknown): string => (typeof part === 'string' ? part : JSON.stringify(part));
  return printable(Array.isArray(value) ? value.map(written).join(', ') : written(value));
}
