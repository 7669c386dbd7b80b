import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterAll, expect } from 'vitest';

const page = fileURLToPath(new URL('../../../docs/devices.md', import.meta.url));
const [begin, end] = ['<!-- made by test/engine/conformance: begin -->', '<!-- end -->'];
const regenerate = 'REGENERATE_DEVICES=1 npx vitest run test/engine/conformance';

/**
 * The table in docs/devices.md, checked after the suite against what ran; with REGENERATE_DEVICES=1 it is written instead. Columns of
 * devices that are not available keep their entries.
 */
export function checkedTable(missing: readonly string[]): {
  ran(call: string, column: string, kernels: readonly string[]): void;
} {
  const rows = new Map<string, Map<string, Set<string>>>();
  afterAll(() => {
    const text = readFileSync(page, 'utf8');
    const [before, rest] = [text.slice(0, text.indexOf(begin)), text.slice(text.indexOf(begin))];
    const after = rest.slice(rest.indexOf(end));
    addColumns(rows, before + rest, missing);
    const made = `${before}${begin}\n\n${tableOf(rows)}\n\n${after}`;
    if (process.env['REGENERATE_DEVICES'] === '1') writeFileSync(page, made);
    else expect(squeezed(made), `docs/devices.md is not what ran: ${regenerate}`).toBe(squeezed(text));
  });
  return {
    ran(call, column, kernels) {
      const row = rows.get(call) ?? new Map<string, Set<string>>();
      rows.set(call, row);
      const cell = row.get(column) ?? new Set<string>();
      row.set(column, cell);
      for (const kernel of kernels) cell.add(kernel);
    },
  };
}

/** The page's entries for these columns. */
function addColumns(
  rows: Map<string, Map<string, Set<string>>>,
  text: string,
  names: readonly string[],
): void {
  const cellsOf = (line: string) => line.split('|').map((cell) => cell.trim());
  const [head = '', , ...lines] = text.slice(text.indexOf(begin)).split('\n').slice(2);
  for (const name of names) {
    const column = cellsOf(head).indexOf(name);
    for (const line of column < 0 ? [] : lines) {
      const cells = cellsOf(line);
      const cell = cells[column] ?? '';
      if (cell !== '') rows.get(cells[1]!)?.set(name, new Set(cell === 'host' ? [] : cell.split(', ')));
    }
  }
}

function tableOf(rows: ReadonlyMap<string, ReadonlyMap<string, ReadonlySet<string>>>): string {
  const columns = [...new Set([...rows.values()].flatMap((row) => [...row.keys()]))];
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`;
  const cellOf = (kernels: ReadonlySet<string> | undefined) =>
    kernels === undefined ? '' : kernels.size === 0 ? 'host' : [...kernels].sort().join(', ');
  return [
    line(['call', ...columns]),
    line(['---', ...columns.map(() => '---')]),
    ...[...rows].map(([call, row]) => line([call, ...columns.map((column) => cellOf(row.get(column)))])),
  ].join('\n');
}

/** Removes the padding that the formatter adds to tables. */
function squeezed(text: string): string {
  return text.replace(/ +/g, ' ').replace(/-{3,}/g, '---');
}
