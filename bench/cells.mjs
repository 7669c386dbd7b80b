import { appendFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';

/** Rows of a long measurement, stored as JSON lines: after an interruption, finished rows are not measured again. */
export class Cells {
  #file;
  #rows;

  constructor(file) {
    this.#file = file;
    mkdirSync(dirname(file), { recursive: true });
    const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : [];
    // A line truncated by a kill is measured again.
    this.#rows = new Map(lines.flatMap((line) => parsed(line)).map(({ key, row }) => [key, row]));
  }

  has(key) {
    return this.#rows.has(key);
  }

  /** The row of a key: from the file, or from `measure`, which is then stored. */
  async row(key, measure) {
    if (!this.#rows.has(key)) {
      const row = await measure();
      appendFileSync(this.#file, `${JSON.stringify({ key, row })}\n`);
      this.#rows.set(key, row);
    }
    return this.#rows.get(key);
  }
}

function parsed(line) {
  try {
    return [JSON.parse(line)];
  } catch {
    return [];
  }
}
