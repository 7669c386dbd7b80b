import type { JobPlan } from '@relora/sdk/contract';
import type { Json } from './api.js';
import { Chart, type Table } from './chart.js';
import { el } from './element.js';
import { bytes, short } from './format.js';
import { axes, placeOf, type Axis, type JobSeries, type MetricName, type Point } from './series.js';

/** The charts of one job, over steps, tokens or hours. */
export class JobCharts {
  readonly element: HTMLElement;
  private axis: Axis = 'steps';
  private plan: Json<JobPlan> | undefined;
  private readonly charts: { chart: Chart; tables(): Table[] }[];
  private frame: number | undefined;

  constructor(
    private readonly series: JobSeries,
    /** Steps before which the adapters were restarted. */
    private readonly restarts: readonly number[],
    id: string,
  ) {
    const shared = {
      sync: id,
      marks: () => this.restarts.map((step) => this.placeAt(step)),
      xLabel: () => this.axis,
    };
    this.charts = [
      {
        chart: new Chart({
          ...shared,
          title: 'Loss',
          unit: 'nats per token',
          lines: [
            { label: 'training', color: '--line-1' },
            { label: 'low', color: '--line-1', boundsOf: 0 },
            { label: 'high', color: '--line-1', boundsOf: 0 },
            { label: 'held-out', color: '--line-2', isSparse: true },
          ],
        }),
        tables: () => [this.withBounds('METRIC_LOSS'), this.column('METRIC_EVALUATION_LOSS')],
      },
      {
        chart: new Chart({
          ...shared,
          title: 'Learning rate',
          unit: 'restarts marked',
          lines: [
            { label: 'taken', color: '--line-3' },
            { label: 'planned', color: '--muted', isDashed: true, isSparse: false, width: 1 },
          ],
        }),
        tables: () => [this.column('METRIC_LEARNING_RATE'), this.planned()],
      },
      {
        chart: new Chart({
          ...shared,
          title: 'Effective rank',
          unit: 'of the change so far',
          lines: [{ label: 'mean over layers', color: '--line-4', isSparse: true }],
        }),
        tables: () => [this.column('METRIC_EFFECTIVE_RANK')],
      },
      this.simple(
        {
          ...shared,
          title: 'Throughput',
          unit: 'tokens a second',
          lines: [{ label: 'now', color: '--line-1' }],
          format: short,
        },
        'METRIC_TOKENS_PER_SECOND',
      ),
      this.simple(
        {
          ...shared,
          title: 'Gradient norm',
          unit: 'before clipping',
          lines: [{ label: 'now', color: '--line-5' }],
        },
        'METRIC_GRADIENT_NORM',
      ),
      this.simple(
        {
          ...shared,
          title: 'Memory',
          unit: 'resident in the trainer',
          lines: [{ label: 'now', color: '--line-2' }],
          format: bytes,
          increments: byteIncrements,
        },
        'METRIC_RESIDENT_BYTES',
      ),
    ];
    const choice = axes.map((axis) =>
      el(
        'button',
        {
          class: 'chip',
          'aria-pressed': String(axis === this.axis),
          click: (event) => {
            this.axis = axis;
            for (const each of (event.currentTarget as HTMLElement).parentElement!.children)
              each.setAttribute('aria-pressed', String(each === event.currentTarget));
            this.draw();
          },
        },
        axis,
      ),
    );
    this.element = el(
      'div',
      {},
      el(
        'div',
        { class: 'chips', role: 'group', 'aria-label': 'Horizontal axis' },
        ...choice,
        el('span', { class: 'hint' }, 'drag to zoom, double-click for all'),
      ),
      el('div', { class: 'charts' }, ...this.charts.map(({ chart }) => chart.element)),
    );
  }

  setPlan(plan: Json<JobPlan>): void {
    this.plan = plan;
    this.update();
  }

  /** Draws changes at the next frame. */
  update(): void {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  end(): void {
    if (this.frame !== undefined) cancelAnimationFrame(this.frame);
    for (const { chart } of this.charts) chart.destroy();
  }

  private draw(): void {
    this.frame = undefined;
    for (const { chart, tables } of this.charts) chart.set(tables());
  }

  private simple(
    options: ConstructorParameters<typeof Chart>[0],
    metric: MetricName,
  ): { chart: Chart; tables(): Table[] } {
    return { chart: new Chart(options), tables: () => [this.column(metric)] };
  }

  private column(metric: MetricName): Table {
    const points = this.series.of(metric);
    return [points.map((point) => placeOf(point, this.axis)), points.map(({ mean }) => mean)];
  }

  private withBounds(metric: MetricName): Table {
    const points = this.series.of(metric);
    return [...this.column(metric), points.map(({ min }) => min), points.map(({ max }) => max)] as Table;
  }

  /** What is planned, only over steps: future tokens and hours are not known. */
  private planned(): Table {
    if (this.axis !== 'steps' || this.plan === undefined) return [[], []];
    const { learningRates } = this.plan;
    return [
      learningRates.map(({ step }) => Number(step) + 1),
      learningRates.map(({ learningRate }) => Number(learningRate)),
    ];
  }

  /** Position of a step on the axis, interpolated linearly between points. */
  private placeAt(step: number): number {
    if (this.axis === 'steps') return step;
    const points = this.series.of('METRIC_LOSS');
    const next = points.findIndex((point) => point.step >= step);
    if (next < 0) return NaN;
    const [low, high] = [points[next - 1] ?? origin, points[next]!];
    const share = (step - low.step) / Math.max(1, high.step - low.step);
    return placeOf(low, this.axis) + share * (placeOf(high, this.axis) - placeOf(low, this.axis));
  }
}

/** Round numbers in the units that byte counts are shown in. */
const byteIncrements = [0, 3, 6, 9].flatMap((power) =>
  [1, 2, 5, 10, 20, 50, 100, 200, 500].map((count) => count * 10 ** power),
);

const origin: Point = { step: 0, tokens: 0, seconds: 0, mean: 0, min: 0, max: 0 };
