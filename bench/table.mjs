/** A Markdown table whose columns also line up in a terminal. Cells may be numbers or text. */
export function table(header, rows) {
  const cells = [header, ...rows].map((row) => row.map(String));
  const widths = header.map((_, column) => Math.max(3, ...cells.map((row) => row[column].length)));
  const line = (row) => `| ${row.map((cell, column) => cell.padEnd(widths[column])).join(' | ')} |`;
  const rule = widths.map((width) => '-'.repeat(width));
  return [cells[0], rule, ...cells.slice(1)].map(line).join('\n');
}

/** Lines for failed measurements, { label, failure }; empty if there are none. */
export function notAvailable(entries) {
  const lines = entries.filter(({ failure }) => failure !== null);
  if (lines.length === 0) return '';
  return `\n\nNot available:\n\n${lines.map(({ label, failure }) => `- ${label}: ${failure}`).join('\n')}`;
}

export const none = '–';

export function percent(share, digits = 0) {
  return share === null ? none : `${(100 * share).toFixed(digits)} %`;
}

/** Rounded to three digits, without exponents. */
export function short(value) {
  if (value === null || value === undefined) return none;
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return value.toFixed(Math.min(digits, 4));
}

export function times(ratio) {
  return `${ratio.toFixed(2)}x`;
}

export function megabytes(bytes) {
  return (bytes / 1e6).toFixed(0);
}

export function milliseconds(seconds) {
  return (1e3 * seconds).toFixed(seconds < 0.01 ? 2 : seconds < 1 ? 1 : 0);
}
