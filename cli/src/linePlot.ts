import { axisLabel, brailleDots } from './lossCurve.js';
import { shareOf, type PlotAxes, type PlotLine } from './plotScale.js';

/** A curve that is distinguished from others by its color, and without colors by its mark. */
export interface DrawnLine extends PlotLine {
  mark: string;
  paint(text: string): string;
}

export interface LinePlotOptions {
  width: number;
  height: number;
  axes: PlotAxes;
  /** What the x axis counts, for example `tokens`. */
  xName: string;
  showX(value: number): string;
  dim(text: string): string;
}

const labelWidth = 7;
/** Columns between two marks of a curve. */
const markEvery = 12;

/**
 * Several curves in braille dots. Each has its mark at regular distances, which other curves do not cover; `↑` and `↓` mark where a curve
 * leaves the plot. Returns `height` lines.
 */
export function linePlot(lines: readonly DrawnLine[], options: LinePlotOptions): string[] {
  const { axes, xName, showX, dim } = options;
  const columns = Math.max(16, options.width - labelWidth - 1);
  const rows = Math.max(3, options.height - 2);
  const cells = Array.from({ length: rows }, () => new Array<string | undefined>(columns));

  const curves = lines.map((line) => ({ line, heights: heightsOf(line, axes, columns * 2, rows * 4) }));

  for (const { line, heights } of curves) {
    const dots = Array.from({ length: rows }, () => new Uint8Array(columns));
    const set = (column: number, dot: number) => {
      if (dot < 0 || dot >= rows * 4) return;
      dots[dot >> 2]![column >> 1]! |= brailleDots[(column & 1) as 0 | 1][(dot & 3) as 0 | 1 | 2 | 3];
    };
    let above: number | undefined;
    for (const [column, height] of heights.entries()) {
      if (height === undefined) continue;
      above ??= height;
      for (let dot = Math.min(above, height); dot <= Math.max(above, height); dot++) set(column, dot);
      above = height;
    }
    for (const [row, bits] of dots.entries())
      for (const [column, bit] of bits.entries())
        if (bit !== 0) cells[row]![column] = line.paint(String.fromCharCode(0x2800 + bit));
  }
  for (const [index, { line, heights }] of curves.entries()) {
    // Shifted from curve to curve, so that marks do not cover each other where curves meet.
    const shift = Math.floor((index * markEvery) / Math.max(1, lines.length));
    const last = heights.findLastIndex((height) => height !== undefined) >> 1;
    for (let column = 0; column < columns; column++) {
      const height = heights[column * 2] ?? heights[column * 2 + 1];
      const isMarked = column % markEvery === shift || column === last;
      if (height === undefined || !isMarked || height < 0 || height >= rows * 4) continue;
      cells[height >> 2]![column] = line.paint(line.mark);
    }
  }

  // Marks values outside the plot: a curve that is cut off would look like one that begins late.
  for (const { line, heights } of curves) {
    for (const [at, height] of heights.entries()) {
      if (height === undefined || (height >= 0 && height < rows * 4)) continue;
      cells[height < 0 ? 0 : rows - 1]![at >> 1] = line.paint(height < 0 ? '↑' : '↓');
    }
  }

  const labels = new Map([
    [0, axes.y.high],
    [(rows - 1) >> 1, axes.y.high + ((axes.y.low - axes.y.high) * ((rows - 1) >> 1)) / (rows - 1)],
    [rows - 1, axes.y.low],
  ]);
  const drawn = cells.map((row, index) => {
    const label = labels.get(index);
    const text = label === undefined ? '' : axisLabel(label);
    const content = Array.from(row, (cell) => cell ?? ' ').join('');
    return `${dim(`${text.padStart(labelWidth - 1)} ${text === '' ? '│' : '┤'}`)}${content}`.trimEnd();
  });
  const [from, to] = [showX(axes.x.low), `${showX(axes.x.high)} ${xName}`];
  return [
    ...drawn,
    dim(`${' '.repeat(labelWidth)}└${'─'.repeat(columns)}`),
    dim(`${' '.repeat(labelWidth + 1)}${from}${to.padStart(columns - from.length)}`),
  ];
}

/** Dot from the top in each dot column, interpolated linearly between points; undefined outside the curve. */
function heightsOf(
  { points }: PlotLine,
  { x, y, isLogarithmic }: PlotAxes,
  columns: number,
  rows: number,
): (number | undefined)[] {
  const heights = new Array<number | undefined>(columns);
  const columnOf = (place: number) =>
    Math.min(columns - 1, Math.round(shareOf(place, x, isLogarithmic) * (columns - 1)));
  const rowOf = (value: number) => Math.round((1 - shareOf(value, y)) * (rows - 1));
  for (const [index, [place, value]] of points.entries()) {
    const column = columnOf(place);
    const [lastPlace, lastValue] = points[index - 1] ?? [place, value];
    const lastColumn = columnOf(lastPlace);
    for (let between = lastColumn; between < column; between++) {
      const share = (between - lastColumn) / (column - lastColumn);
      heights[between] ??= rowOf(lastValue + share * (value - lastValue));
    }
    heights[column] = rowOf(value);
  }
  return heights;
}
