import { appendFileSync, writeFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';

/** A Markdown table that gets a row as soon as a result is known, so that an interrupted run loses nothing. Rows are also printed. */
export class Report {
  counts = { ok: 0, FAULT: 0, 'not run': 0, measured: 0, 'not measured': 0 };
  #path;
  #begin = performance.now();

  constructor(path, title, lines) {
    this.#path = path;
    const head = ['section', 'what', 'outcome', 'figures', 's'];
    const rule = head.map(() => '---');
    const table = [head, rule].map((cells) => `| ${cells.join(' | ')} |`);
    writeFileSync(path, [`# ${title}`, '', ...lines, '', ...table, ''].join('\n'));
    for (const line of lines) console.log(line);
  }

  /** @param {{ what: string, outcome: keyof Report['counts'], figures?: string }} row */
  add(section, { what, outcome, figures = '' }) {
    this.counts[outcome]++;
    const seconds = ((performance.now() - this.#begin) / 1e3).toFixed(1);
    const cells = [section, what, outcome, figures, seconds].map((cell) =>
      String(cell).replaceAll('|', '\\|').replaceAll('\n', ' '),
    );
    appendFileSync(this.#path, `| ${cells.join(' | ')} |\n`);
    console.log(
      `${seconds.padStart(6)} s  ${outcome.padEnd(12)} ${section}: ${what}${figures && `  ${figures}`}`,
    );
  }

  end() {
    const counted = Object.entries(this.counts).filter(([, count]) => count > 0);
    const line = counted.map(([outcome, count]) => `${count} ${outcome}`).join(', ');
    appendFileSync(this.#path, `\n${line}\n`);
    console.log(`${line}; ${this.#path}`);
  }
}
