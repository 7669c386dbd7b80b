/** 1:02:03 or 2:03. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  const tail = `${String(minutes).padStart(hours > 0 ? 2 : 1, '0')}:${String(rest).padStart(2, '0')}`;
  return hours > 0 ? `${hours}:${tail}` : tail;
}

/** For example 4.2 s below a minute, then as a duration: for times that are compared. */
export function timeTaken(seconds: number): string {
  return seconds < 60 ? `${figure(seconds < 10 ? seconds : Math.round(seconds))} s` : duration(seconds);
}

/** For example 372 MB; in powers of 1000, like disks and downloads. */
export function bytes(count: number): string {
  return scaled(count, ['B', 'kB', 'MB', 'GB', 'TB']);
}

/** For example 1.2 M; for tokens, parameters and operations. */
export function quantity(count: number): string {
  return scaled(count, ['', 'k', 'M', 'G', 'T', 'P']).trimEnd();
}

/** Losses and norms: four significant digits, or scientific notation if that shows more. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return '0';
  const magnitude = Math.abs(value);
  return magnitude >= 1e-3 && magnitude < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(1);
}

/** Columns, each as wide as its widest cell. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows.reduce<number[]>(
    (found, row) => row.map((cell, index) => Math.max(found[index] ?? 0, cell.length)),
    [],
  );
  return rows.map((row) =>
    row
      .map((cell, index) => cell.padEnd(widths[index]!))
      .join('  ')
      .trimEnd(),
  );
}

function scaled(count: number, units: readonly string[]): string {
  let value = count;
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : Number(value.toPrecision(3))} ${units[unit]}`;
}

/** A value of the contract as it is written on the command line, for example int8-base. */
export function word(value: string, prefix: string | RegExp): string {
  return value.replace(prefix, '').toLowerCase().replaceAll('_', '-');
}
