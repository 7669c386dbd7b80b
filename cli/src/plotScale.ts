/** A curve: points in the order of x. */
export interface PlotLine {
  label: string;
  points: readonly (readonly [x: number, y: number])[];
}

export interface Range {
  low: number;
  high: number;
}

/** The axes that all curves of a plot share. */
export interface PlotAxes {
  x: Range;
  y: Range;
  isLogarithmic: boolean;
}

/**
 * Share of the width in which values may be above the plot: otherwise the fall of the loss at the start would flatten everything after it.
 */
const steepShare = 0.05;

/** Ranges that include all of several curves, except for steep beginnings. Null if there is nothing to show. */
export function axesOf(
  lines: readonly PlotLine[],
  options: { isLogarithmic?: boolean; mayCutStart?: boolean } = {},
): PlotAxes | null {
  const { isLogarithmic = false, mayCutStart = false } = options;
  const points = lines.flatMap((line) => line.points);
  if (points.length === 0) return null;
  const x = rangeOf(points.map(([place]) => place));
  const begin = x.low + steepShare * (x.high - x.low);
  const late = points.filter(([place]) => place >= begin).map(([, value]) => value);
  const y = rangeOf(points.map(([, value]) => value));
  if (mayCutStart && late.length > 1) {
    const cut = rangeOf(late);
    // Some space above, so that the cut is visible.
    y.high = Math.min(y.high, cut.high + 0.1 * (cut.high - y.low));
  }
  return { x, y, isLogarithmic };
}

/** Position of a value in a range, 0 to 1; outside of this for values outside the range. */
export function shareOf(value: number, { low, high }: Range, isLogarithmic = false): number {
  if (high === low) return 0.5;
  if (isLogarithmic) return Math.log(value / low) / Math.log(high / low);
  return (value - low) / (high - low);
}

/** About `count` round numbers inside a range. */
export function ticksOf({ low, high }: Range, count: number): number[] {
  if (high === low) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough)!;
  const ticks: number[] = [];
  // Multiplied rather than added up, which would accumulate rounding errors.
  for (let tick = Math.ceil(low / step); tick * step <= high * (1 + 1e-12); tick++)
    ticks.push(Number((tick * step).toPrecision(12)));
  return ticks;
}

/** 1, 2 and 5 times powers of ten inside a range. */
export function logarithmicTicks({ low, high }: Range): number[] {
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) ticks.push(Number(`${factor}e${power}`));
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

function rangeOf(values: readonly number[]): Range {
  // Not by spreading: a comparison may have more points than a call can have arguments.
  return values.reduce(
    ({ low, high }, value) => ({ low: Math.min(low, value), high: Math.max(high, value) }),
    { low: Infinity, high: -Infinity },
  );
}
