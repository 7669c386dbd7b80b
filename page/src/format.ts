/** A number in JSON: 64-bit integers are strings, and so are values that are not finite. */
export type JsonNumber = number | string;

const dash = '–';

/** Four significant digits, or fewer for round ones. */
export function figure(value: JsonNumber | undefined, digits = 4): string {
  if (value === undefined) return dash;
  const number = Number(value);
  if (!Number.isFinite(number)) return String(value);
  if (number === 0) return '0';
  const size = Math.abs(number);
  if (size < 1e-3 || size >= 1e7) return number.toExponential(2).replace('e+', 'e');
  if (size >= 10 ** digits) return whole(number);
  return number.toPrecision(digits);
}

/** Grouped by thousands. */
export function whole(value: JsonNumber | undefined): string {
  return value === undefined ? dash : Math.round(Number(value)).toLocaleString('en-US');
}

/** For example 1.24M or 980k: for numbers that are read at a glance. */
export function short(value: JsonNumber | undefined): string {
  if (value === undefined) return dash;
  let number = Number(value);
  for (const unit of ['', 'k', 'M', 'B', 'T']) {
    if (Math.abs(number) < 999.5 || unit === 'T') return `${trim(number.toPrecision(3))}${unit}`;
    number /= 1000;
  }
  return dash;
}

function trim(text: string): string {
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

export function bytes(value: JsonNumber | undefined): string {
  if (value === undefined) return dash;
  let number = Number(value);
  for (const unit of ['B', 'kB', 'MB', 'GB', 'TB']) {
    if (number < 999.5 || unit === 'TB')
      return `${number < 100 && unit !== 'B' ? number.toFixed(1) : number.toFixed(0)} ${unit}`;
    number /= 1000;
  }
  return dash;
}

/** For example 3d 4h, 2h 05m, 4m 10s, 8.2s: at most two units. */
export function duration(seconds: JsonNumber | undefined): string {
  if (seconds === undefined) return dash;
  const all = Number(seconds);
  if (!Number.isFinite(all)) return dash;
  if (all < 10) return `${all.toFixed(1)}s`;
  if (all < 60) return `${Math.round(all)}s`;
  const minutes = Math.floor(all / 60);
  if (minutes < 60) return `${minutes}m ${two(Math.floor(all % 60))}s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours}h ${two(minutes % 60)}m` : `${Math.floor(hours / 24)}d ${hours % 24}h`;
}

function two(value: number): string {
  return String(value).padStart(2, '0');
}

/** How long ago: one unit. */
export function age(time: string | undefined): string {
  if (time === undefined) return dash;
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 60) return 'just now';
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)}h ago`;
  return `${Math.floor(seconds / 86_400)}d ago`;
}

export function clock(time: string | undefined): string {
  return time === undefined ? dash : new Date(time).toLocaleTimeString('en-US', { hour12: false });
}

export function dateTime(time: string | undefined): string {
  return time === undefined ? dash : new Date(time).toLocaleString('sv-SE');
}

/** JOB_STATE_RUNNING becomes `running`, TARGET_MODULE_Q_PROJ becomes `q_proj`. */
export function word(value: string | undefined, prefix: string): string {
  return (value ?? '').replace(`${prefix}_`, '').toLowerCase();
}

/** `jobs/abc` becomes `abc`. */
export function idOf(name: string): string {
  return name.slice(name.lastIndexOf('/') + 1);
}
