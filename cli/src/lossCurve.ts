export interface Point {
  step: number;
  loss: number;
}

/** The loss of several steps together begins at the first of them. */
export interface LossPoint extends Point {
  firstStep?: number;
}

export interface CurveOptions {
  width: number;
  height: number;
  stepCount: number;
  /** Shown as points. */
  evaluations: readonly Point[];
  /** Steps shown as vertical lines. */
  restarts: readonly number[];
  paint: {
    curve(text: string): string;
    evaluation(text: string): string;
    restart(text: string): string;
    axis(text: string): string;
  };
}

const labelWidth = 7;
/** Bits of the eight dots of a braille character, by column and row. */
export const brailleDots = [
  [0x01, 0x02, 0x04, 0x40],
  [0x08, 0x10, 0x20, 0x80],
] as const;

/**
 * A loss curve in braille characters of two by four dots, with the axis on the left and the steps below. Losses in the same dot column are
 * averaged; losses that are not finite leave a gap. Returns `height` lines.
 */
export function lossCurve(losses: readonly LossPoint[], options: CurveOptions): string[] {
  const { width, height, stepCount, evaluations, restarts, paint } = options;
  const columns = Math.max(8, width - labelWidth - 1);
  const rows = Math.max(2, height - 2);
  const means = columnMeans(losses, columns * 2, stepCount);
  const shown = [
    ...means.flatMap((column) => column?.mean ?? []),
    ...evaluations.map(({ loss }) => loss),
  ].filter(Number.isFinite);
  const high = shown.length > 0 ? Math.max(...shown) : 1;
  const low = shown.length > 0 ? Math.min(...shown) : 0;
  const rowOf = (loss: number, count: number) =>
    Math.min(count - 1, Math.max(0, Math.round(((high - loss) / Math.max(1e-9, high - low)) * (count - 1))));

  const dots = Array.from({ length: rows }, () => new Uint8Array(columns));
  // Consecutive steps are joined, however many columns are between them, so that the curve is not interrupted; gaps remain.
  let last: { x: number; y: number } | null = null;
  for (const [x, column] of means.entries()) {
    if (column === null) continue;
    const y = rowOf(column.mean, rows * 4);
    const start: { x: number; y: number } = last !== null && column.follows ? last : { x: x - 1, y };
    let above = start.y;
    for (let column = start.x + 1; column <= x; column++) {
      const here = Math.round(start.y + ((y - start.y) * (column - start.x)) / (x - start.x));
      const from = above < here ? above + 1 : above > here ? above - 1 : here;
      for (let dot = Math.min(from, here); dot <= Math.max(from, here); dot++) {
        dots[dot >> 2]![column >> 1]! |= brailleDots[(column & 1) as 0 | 1][(dot & 3) as 0 | 1 | 2 | 3];
      }
      above = here;
    }
    last = { x, y };
  }

  const columnOf = (step: number) =>
    Math.min(columns - 1, Math.floor((step / Math.max(1, stepCount)) * columns));
  const restartColumns = new Set(restarts.map(columnOf));
  const marks = new Map(
    evaluations
      .filter(({ loss }) => Number.isFinite(loss))
      .map(({ step, loss }) => [`${rowOf(loss, rows)}:${columnOf(step)}`, true]),
  );

  const lines: string[] = [];
  for (let row = 0; row < rows; row++) {
    const label = row === 0 ? axisLabel(high) : row === rows - 1 ? axisLabel(low) : '';
    let line = paint.axis(`${label.padStart(labelWidth - 1)} ${label === '' ? '│' : '┤'}`);
    for (let column = 0; column < columns; column++) {
      const bits = dots[row]![column]!;
      if (marks.has(`${row}:${column}`)) line += paint.evaluation('◆');
      else if (bits !== 0) line += paint.curve(String.fromCharCode(0x2800 + bits));
      else line += restartColumns.has(column) ? paint.restart('┊') : ' ';
    }
    lines.push(line.trimEnd());
  }
  const below = Array.from({ length: columns }, (_, column) => (restartColumns.has(column) ? '┴' : '─'));
  lines.push(paint.axis(`${' '.repeat(labelWidth)}└${below.join('')}`));
  lines.push(paint.axis(`${' '.repeat(labelWidth + 1)}0${String(stepCount).padStart(columns - 1)}`));
  return lines;
}

/** At most six characters. */
export function axisLabel(loss: number): string {
  return Math.abs(loss) < 999.995 ? loss.toFixed(2) : loss.toExponential(0);
}

interface Column {
  mean: number;
  /** Whether its first step directly follows the last step with a loss in an earlier column. */
  follows: boolean;
}

/** Means of each of `count` columns; null for columns without a loss. */
function columnMeans(losses: readonly LossPoint[], count: number, stepCount: number): (Column | null)[] {
  const columns = Array.from({ length: count }, () => ({ sum: 0, count: 0, follows: false }));
  let lastStep = -Infinity;
  for (const { step, firstStep = step, loss } of losses) {
    if (!Number.isFinite(loss)) continue;
    const column = columns[Math.min(count - 1, Math.floor((step / Math.max(1, stepCount)) * count))]!;
    if (column.count === 0) column.follows = firstStep <= lastStep + 1;
    column.sum += loss;
    column.count++;
    lastStep = step;
  }
  return columns.map(({ sum, count, follows }) => (count === 0 ? null : { mean: sum / count, follows }));
}
