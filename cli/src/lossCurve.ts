export interface Point {
  step: number;
  loss: number;
}

export interface CurveOptions {
  width: number;
  height: number;
  stepCount: number;
  /** Marked as points. */
  evaluations: readonly Point[];
  /** Steps marked as vertical lines. */
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
 * A loss curve drawn in braille characters, two by four dots each, with the axis on the left and the steps below. Losses
 * of the same dot column are averaged; those that are not finite leave a gap. Returns `height` lines.
 */
export function lossCurve(losses: readonly Point[], options: CurveOptions): string[] {
  const { width, height, stepCount, evaluations, restarts, paint } = options;
  const columns = Math.max(8, width - labelWidth - 1);
  const rows = Math.max(2, height - 2);
  const means = columnMeans(losses, columns * 2, stepCount);
  const shown = [...means.filter((mean) => mean !== null), ...evaluations.map(({ loss }) => loss)].filter(
    Number.isFinite,
  );
  const high = shown.length > 0 ? Math.max(...shown) : 1;
  const low = shown.length > 0 ? Math.min(...shown) : 0;
  const rowOf = (loss: number, count: number) =>
    Math.min(count - 1, Math.max(0, Math.round(((high - loss) / Math.max(1e-9, high - low)) * (count - 1))));

  const dots = Array.from({ length: rows }, () => new Uint8Array(columns));
  // Steps are joined, also where there are fewer of them than columns, so that the curve does not fall apart; gaps stay.
  const reach = Math.ceil((columns * 2) / Math.max(1, stepCount));
  let last: { x: number; y: number } | null = null;
  for (const [x, mean] of means.entries()) {
    if (mean === null) continue;
    const y = rowOf(mean, rows * 4);
    const start: { x: number; y: number } = last !== null && x - last.x <= reach ? last : { x: x - 1, y };
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

/** Mean loss of each of `count` columns; null where no step falls. */
function columnMeans(losses: readonly Point[], count: number, stepCount: number): (number | null)[] {
  const sums = new Float64Array(count);
  const counts = new Int32Array(count);
  for (const { step, loss } of losses) {
    if (!Number.isFinite(loss)) continue;
    const column = Math.min(count - 1, Math.floor((step / Math.max(1, stepCount)) * count));
    sums[column]! += loss;
    counts[column]!++;
  }
  return Array.from(sums, (sum, column) => (counts[column] === 0 ? null : sum / counts[column]!));
}
