import uPlot from './uPlot.js';
import { el, fill } from './element.js';
import { figure, short } from './format.js';
import { cssColor, onTheme } from './theme.js';

export interface Line {
  label: string;
  /** Name of a color in the style sheet, for example `--line-1`. */
  color: string;
  /** Joins values across gaps, and marks each value. */
  isSparse?: boolean;
  isDashed?: boolean;
  /** Index of another line whose band this line bounds: drawn as an area, not as a line. */
  boundsOf?: number;
  width?: number;
}

export interface ChartOptions {
  title: string;
  unit?: string;
  lines: readonly Line[];
  format?: (value: number) => string;
  /** Distances between ticks of the y axis, for units in which round numbers do not look round. */
  increments?: readonly number[];
  /** Charts with the same name share their cursor and zoom. */
  sync: string;
  /** Positions on the x axis to mark, such as restarts. */
  marks?: () => readonly number[];
  xLabel?: () => string;
}

/** The data of the chart: x values in order, then one column per line. */
export type Table = [number[], ...(number | null)[][]];

const height = 200;
/** Below this distance in CSS pixels, marks shrink to ticks, and lines are drawn without points. */
const spacing = 12;

/** A plot with its legend, which shows the values at the cursor, or else the last ones. */
export class Chart {
  readonly element: HTMLElement;
  private readonly plot: uPlot;
  private readonly values: HTMLElement[];
  private readonly empty = el('p', { class: 'chart-empty' }, 'Nothing yet');
  private readonly ends: (() => void)[] = [];

  constructor(private readonly options: ChartOptions) {
    const { title, unit, lines } = options;
    this.values = lines.map(() => el('b'));
    const legend = lines.flatMap(({ label, color, boundsOf, isDashed }, index) =>
      boundsOf === undefined
        ? [
            el(
              'span',
              { class: `key ${isDashed ? 'dashed' : ''}`, 'data-color': color },
              label,
              ' ',
              this.values[index]!,
            ),
          ]
        : [],
    );
    const place = el('div', {
      class: 'plot',
      tabindex: 0,
      role: 'img',
      keydown: (event) => this.onKey(event as KeyboardEvent),
    });
    this.element = el(
      'figure',
      { class: 'chart' },
      el(
        'figcaption',
        {},
        el('h2', {}, title, unit === undefined ? null : el('small', {}, ` ${unit}`)),
        el('div', { class: 'keys' }, ...legend),
      ),
      place,
      this.empty,
    );
    this.plot = new uPlot(this.plotOptions(), [[], ...lines.map(() => [])], place);
    const observer = new ResizeObserver(() =>
      this.plot.setSize({ width: Math.max(100, place.clientWidth), height }),
    );
    observer.observe(place);
    this.ends.push(
      () => observer.disconnect(),
      onTheme(() => this.plot.redraw(false)),
    );
  }

  /** Shows other values. Tables with different x values are joined. */
  set(tables: readonly Table[]): void {
    const data = tables.length === 1 ? tables[0]! : uPlot.join(tables as never);
    this.empty.hidden = (data[0]?.length ?? 0) > 0;
    const { scales } = this.plot;
    // A zoom is kept while values are added.
    const isZoomed = this.isZoomed();
    const { min, max } = scales.x!;
    this.plot.setData(data as uPlot.AlignedData, !isZoomed);
    if (isZoomed) this.plot.setScale('x', { min: min!, max: max! });
    this.showValues();
    this.plot.root.parentElement!.setAttribute('aria-label', this.describe());
  }

  destroy(): void {
    for (const end of this.ends) end();
    this.plot.destroy();
  }

  private isZoomed(): boolean {
    const xs = this.plot.data[0];
    const { min, max } = this.plot.scales.x!;
    if (xs.length < 2 || min === undefined || max === undefined || min === null || max === null) return false;
    return min > xs[0]! || max < xs.at(-1)!;
  }

  private describe(): string {
    const { title, lines } = this.options;
    const parts = lines.flatMap(({ label, boundsOf }, index) => {
      const column = (this.plot.data[index + 1] ?? []).filter((value) => typeof value === 'number');
      return boundsOf !== undefined || column.length === 0
        ? []
        : [`${label} from ${this.format(column[0]!)} to ${this.format(column.at(-1)!)}`];
    });
    return `${title}: ${parts.join('; ') || 'nothing yet'}`;
  }

  private format(value: number): string {
    return (this.options.format ?? figure)(value);
  }

  private showValues(): void {
    const at = this.plot.cursor.idx;
    this.options.lines.forEach((_, index) => {
      const column = this.plot.data[index + 1] ?? [];
      let value = at === null || at === undefined ? undefined : column[at];
      if (value === null || value === undefined) value = lastNumber(column, at ?? column.length - 1);
      fill(this.values[index]!, value === undefined ? '–' : this.format(value));
    });
  }

  /** Moves the cursor by arrow keys, for people without a mouse. */
  private onKey(event: KeyboardEvent): void {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    const xs = this.plot.data[0];
    if (step === undefined || xs.length === 0) return;
    event.preventDefault();
    const index = Math.min(xs.length - 1, Math.max(0, (this.plot.cursor.idx ?? xs.length) + step));
    this.plot.setCursor({ left: this.plot.valToPos(xs[index]!, 'x'), top: height / 3 });
  }

  private plotOptions(): uPlot.Options {
    const { lines, sync, xLabel, increments } = this.options;
    const axis = {
      stroke: () => cssColor('--muted'),
      font: '11px system-ui, sans-serif',
      ticks: { show: false },
      grid: { stroke: () => cssColor('--line'), width: 1 },
    };
    return {
      width: 400,
      height,
      legend: { show: false },
      cursor: { sync: { key: sync, setSeries: false }, points: { size: 6 }, drag: { x: true, y: false } },
      scales: { x: { time: false } },
      axes: [
        {
          ...axis,
          size: 28,
          values: (_, ticks) => ticks.map((tick) => short(tick) + (xLabel?.() === 'hours' ? 'h' : '')),
        },
        {
          ...axis,
          size: 56,
          values: (_, ticks) => ticks.map((tick) => this.formatTick(tick)),
          ...(increments === undefined ? {} : { incrs: [...increments] }),
        },
      ],
      series: [{}, ...lines.map((line) => seriesOf(line))],
      bands: lines.flatMap(({ boundsOf }, index) =>
        boundsOf !== undefined && lines[index + 1]?.boundsOf === boundsOf
          ? [
              {
                series: [index + 1, index + 2] as [number, number],
                fill: () => cssColor(`${lines[boundsOf]!.color}-soft`),
              },
            ]
          : [],
      ),
      hooks: {
        drawAxes: [(plot) => this.drawMarks(plot)],
        setCursor: [() => this.showValues()],
      },
    };
  }

  private formatTick(value: number): string {
    if (this.options.increments === undefined && Math.abs(value) >= 1000) return short(value);
    return this.format(value)
      .replace(/(\.\d*?)0+(?=e|$)/, '$1')
      .replace(/\.(?=e|$)/, '')
      .replace(/\.0(?= )/, '');
  }

  private drawMarks(plot: uPlot): void {
    const { min, max } = plot.scales.x!;
    const marks = (this.options.marks?.() ?? []).filter((mark) => mark >= min! && mark <= max!);
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = cssColor('--mark');
    ctx.lineWidth = devicePixelRatio;
    const areLines = marks.length * spacing * devicePixelRatio <= bbox.width;
    if (areLines) ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    const top = areLines ? bbox.top : bbox.top + bbox.height - 6 * devicePixelRatio;
    ctx.beginPath();
    for (const mark of marks) {
      const x = Math.round(plot.valToPos(mark, 'x', true));
      ctx.moveTo(x, top);
      ctx.lineTo(x, bbox.top + bbox.height);
    }
    ctx.stroke();
    ctx.restore();
  }
}

function seriesOf({
  label,
  color,
  isSparse = false,
  isDashed = false,
  boundsOf,
  width = 1.5,
}: Line): uPlot.Series {
  if (boundsOf !== undefined) return { label, width: 0, points: { show: false }, stroke: 'transparent' };
  return {
    label,
    width,
    stroke: () => cssColor(color),
    spanGaps: isSparse,
    ...(isDashed ? { dash: [5, 4] } : {}),
    points: isSparse ? { show: haveRoom, size: 5, fill: () => cssColor(color) } : { show: false },
  };
}

function haveRoom(plot: uPlot, series: number, first: number, last: number): boolean {
  const column = plot.data[series]!;
  let count = 0;
  for (let index = first; index <= last; index++) if (typeof column[index] === 'number') count++;
  return count * spacing * devicePixelRatio <= plot.bbox.width;
}

function lastNumber(column: ArrayLike<number | null | undefined>, from: number): number | undefined {
  for (let index = Math.min(from, column.length - 1); index >= 0; index--) {
    const value = column[index];
    if (typeof value === 'number') return value;
  }
  return undefined;
}
