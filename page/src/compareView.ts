import type { CompareJobsResponse, ComparedJob } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { Chart, type Line, type Table } from './chart.js';
import { el, fill, scrolling } from './element.js';
import { bytes, duration, figure, idOf, short, whole, word } from './format.js';
import { evaluationText } from './jobLog.js';
import { stateBadge } from './jobParts.js';
import { Problem } from './problem.js';
import { open } from './route.js';
import { axes, placeOf, toPoint, type Axis, type MetricName } from './series.js';
import { repeat, type View } from './view.js';

const pauseMs = 5000;
const pointsMax = 500;
const lineColors = [
  '--line-1',
  '--line-2',
  '--line-3',
  '--line-4',
  '--line-5',
  '--line-6',
  '--line-7',
  '--line-8',
];

const plots: { metric: MetricName; title: string; unit: string; isSparse?: boolean }[] = [
  { metric: 'METRIC_EVALUATION_LOSS', title: 'Held-out loss', unit: 'nats per token', isSparse: true },
  { metric: 'METRIC_LOSS', title: 'Training loss', unit: 'nats per token' },
  { metric: 'METRIC_LEARNING_RATE', title: 'Learning rate', unit: '' },
  { metric: 'METRIC_EFFECTIVE_RANK', title: 'Effective rank', unit: 'at each restart', isSparse: true },
];

/** Compares several jobs. */
export function compareView(ids: readonly string[]): View {
  let axis: Axis = 'steps';
  let result: Json<CompareJobsResponse> | undefined;
  let charts: Chart[] = [];
  const problem = new Problem();
  const warnings = el('div');
  const chartPlace = el('div', { class: 'charts' });
  const table = scrolling('Results');
  const differences = scrolling('Settings that differ');
  const field = el('input', {
    value: ids.join(', '),
    placeholder: 'ids of jobs, with commas between them',
    'aria-label': 'Jobs to compare',
  });
  const form = el(
    'form',
    {
      class: 'grow',
      submit: (event) => {
        event.preventDefault();
        open(
          `/compare?jobs=${field.value
            .split(/[\s,]+/)
            .filter(Boolean)
            .map(encodeURIComponent)
            .join(',')}`,
        );
      },
    },
    field,
    el('button', {}, 'Compare'),
  );

  const draw = (): void => {
    if (result === undefined) return;
    plots.forEach(({ metric }, index) =>
      charts[index]!.set(result!.jobs.map((job) => columnOf(job, metric, axis))),
    );
  };

  const show = (present: Json<CompareJobsResponse>): void => {
    if (charts.length === 0) {
      charts = plots.map(
        ({ title, unit, isSparse = false }) =>
          new Chart({
            title,
            unit,
            sync: 'compare',
            xLabel: () => axis,
            lines: present.jobs.map((job, index) => lineOf(job, index, isSparse)),
          }),
      );
      fill(chartPlace, ...charts.map(({ element }) => element));
    }
    result = present;
    draw();
    fill(
      warnings,
      ...present.warnings.map(({ reason, message }) =>
        el('p', { class: 'caution' }, `${reason}: ${message}`),
      ),
    );
    fill(table, resultTable(present));
    fill(differences, differenceTable(present));
  };

  const end = repeat(async (signal) => {
    if (ids.length < 2) return;
    const names = ids.map((id) => `jobs/${id}`);
    const metrics = plots.map(({ metric }) => metric);
    await problem.of(
      async () => show(await call('TrainingService', 'compareJobs', { names, metrics, pointsMax }, signal)),
      signal,
    );
  }, pauseMs);

  const choice = axes.map((each) =>
    el(
      'button',
      {
        class: 'chip',
        'aria-pressed': String(each === axis),
        click: (event) => {
          axis = each;
          for (const other of (event.currentTarget as HTMLElement).parentElement!.children)
            other.setAttribute('aria-pressed', String(other === event.currentTarget));
          draw();
        },
      },
      each,
    ),
  );
  return {
    title: 'Compare',
    element: el(
      'section',
      {},
      el('header', { class: 'bar' }, el('h1', {}, 'Compare'), form),
      problem.element,
      ids.length < 2
        ? el(
            'p',
            { class: 'muted' },
            'Choose two or more jobs in the list of jobs, or write their ids above.',
          )
        : el(
            'div',
            {},
            warnings,
            el('div', { class: 'chips', role: 'group', 'aria-label': 'Horizontal axis' }, ...choice),
            chartPlace,
            el('h2', {}, 'Results'),
            table,
            el('h2', {}, 'Settings that differ'),
            differences,
          ),
    ),
    end: () => {
      end();
      for (const chart of charts) chart.destroy();
    },
  };
}

function lineOf({ displayName, name }: Json<ComparedJob>, index: number, isSparse: boolean): Line {
  // After the last color, lines are dashed: up to twice as many lines look different.
  return {
    label: displayName || idOf(name),
    color: lineColors[index % lineColors.length]!,
    isSparse,
    isDashed: index >= lineColors.length,
  };
}

function columnOf(job: Json<ComparedJob>, metric: MetricName, axis: Axis): Table {
  const points = (job.series.find((each) => each.metric === metric)?.points ?? []).map(toPoint);
  return [points.map((point) => placeOf(point, axis)), points.map(({ mean }) => mean)];
}

function evaluationNames(jobs: readonly Json<ComparedJob>[]): string[] {
  return [...new Set(jobs.flatMap(({ evaluations }) => (evaluations ?? []).map(({ name }) => name)))];
}

function resultTable({ jobs, reference }: Json<CompareJobsResponse>): HTMLElement {
  const rows: [string, (job: Json<ComparedJob>) => string | HTMLElement][] = [
    ['State', ({ state }) => stateBadge(state)],
    [
      'Kind',
      ({ kind, rank }) => `${word(kind, 'JOB_KIND').replace('_', ' ')}${Number(rank) > 0 ? ` r${rank}` : ''}`,
    ],
    ['Steps', ({ step, stepCount }) => `${short(step)} / ${short(stepCount)}`],
    ['Tokens', ({ trainedTokens }) => short(trainedTokens)],
    ['Trainable weights', ({ trainableParameterCount }) => short(trainableParameterCount)],
    ['Held-out loss', ({ evaluationLoss }) => figure(evaluationLoss)],
    [
      'against the reference',
      ({ name, evaluationLossDifference }) =>
        name === reference ? 'reference' : signed(evaluationLossDifference),
    ],
    ['Bits per byte', ({ bitsPerByte }) => figure(bitsPerByte)],
    [
      'Best held-out loss',
      ({ bestEvaluationLoss, bestEvaluationStep }) =>
        bestEvaluationLoss === undefined
          ? '–'
          : `${figure(bestEvaluationLoss)} at ${short(bestEvaluationStep)}`,
    ],
    ...evaluationNames(jobs).map((evaluation): [string, (job: Json<ComparedJob>) => string] => [
      evaluation,
      ({ evaluations }) => {
        const found = evaluations?.find(({ name }) => name === evaluation);
        return found ? evaluationText(found) : '–';
      },
    ]),
    ['Tokens to the reference loss', ({ tokensToReferenceLoss }) => short(tokensToReferenceLoss)],
    ['Effective rank', ({ effectiveRank }) => figure(effectiveRank)],
    ['Restarts', ({ restartCount }) => whole(restartCount)],
    ['Tokens/s', ({ tokensPerSecond }) => short(tokensPerSecond)],
    ['Peak memory', ({ peakResidentBytes }) => bytes(peakResidentBytes)],
    ['Training time', ({ trainingSeconds }) => duration(trainingSeconds)],
    ['Peak rate', ({ peakLearningRate }) => figure(peakLearningRate)],
    ['Seed', ({ seed }) => String(seed)],
  ];
  const heads = jobs.map(({ name, displayName }, index) =>
    el(
      'th',
      { scope: 'col', class: 'right' },
      el(
        'a',
        {
          class: 'title key',
          'data-color': lineColors[index % lineColors.length]!,
          href: `/jobs/${idOf(name)}`,
        },
        displayName || idOf(name),
      ),
    ),
  );
  return el(
    'table',
    { class: 'rows' },
    el(
      'thead',
      {},
      el('tr', {}, el('th', { scope: 'col' }, el('span', { class: 'unseen' }, 'Figure')), ...heads),
    ),
    el(
      'tbody',
      {},
      ...rows.map(([title, cell]) =>
        el(
          'tr',
          {},
          el('th', { scope: 'row' }, title),
          ...jobs.map((job) => el('td', { class: 'right number' }, cell(job))),
        ),
      ),
    ),
  );
}

function signed(value: number | string | undefined): string {
  return value === undefined ? '–' : `${Number(value) > 0 ? '+' : ''}${figure(value)}`;
}

/** A value as people write it: `["TARGET_MODULE_Q_PROJ"]` of `adapter.target_modules` becomes `q_proj`. */
function settingText(field: string, value: string): string {
  const name = field
    .slice(field.lastIndexOf('.') + 1)
    .replace(/s$/, '')
    .toUpperCase();
  return value
    .replace(/"([A-Z][A-Z0-9_]*)"/g, (quoted, constant: string) => {
      const short = constant.replace(new RegExp(`^(.*_)?(${name}S?|KIND)_(KIND_)?`), '');
      return short === constant ? quoted : short.toLowerCase();
    })
    .replace(/^\[(.*)\]$/s, '$1')
    .replaceAll(',', ', ');
}

function differenceTable({ jobs, differences }: Json<CompareJobsResponse>): HTMLElement {
  if (differences.length === 0) return el('p', { class: 'muted' }, 'None.');
  return el(
    'table',
    { class: 'rows' },
    el(
      'thead',
      {},
      el(
        'tr',
        {},
        el('th', { scope: 'col' }, 'Setting'),
        ...jobs.map(({ name, displayName }) =>
          el('th', { scope: 'col', class: 'right' }, displayName || idOf(name)),
        ),
      ),
    ),
    el(
      'tbody',
      {},
      ...differences.map(({ field, values }) =>
        el(
          'tr',
          {},
          el('th', { scope: 'row' }, el('code', {}, field)),
          ...values.map((value) => el('td', { class: 'right number long' }, settingText(field, value))),
        ),
      ),
    ),
  );
}
