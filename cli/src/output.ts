import { printable } from './screenText.js';
import { describeError, errorJson } from './exitCodes.js';

/** Where results go: lines for people, or with --json one JSON object a line. */
export class Output {
  /** The server that is talked to; empty until there is one. */
  address = '';
  /** Drawn over by a view; what is said meanwhile would tear it. */
  isDrawnOver = false;

  constructor(readonly isJson: boolean) {}

  /** A result; `lines` says it to people. */
  result(value: unknown, lines: () => Iterable<string>): void {
    if (this.isJson) this.write(JSON.stringify(value));
    else for (const line of lines()) this.write(printable(line));
  }

  /** A result in colors. What the lines show of others' text was made printable before. */
  drawing(value: unknown, lines: () => Iterable<string>): void {
    if (this.isJson) this.write(JSON.stringify(value));
    else for (const line of lines()) this.write(line);
  }

  /** Something on the way, which only people want to know. */
  note(text: string): void {
    if (!this.isJson && !this.isDrawnOver) process.stderr.write(`${text}\n`);
  }

  error(error: unknown): void {
    const text = this.isJson
      ? JSON.stringify(errorJson(error))
      : describeError(error, this.address).map(printable).join('\n');
    process.stderr.write(`${text}\n`);
  }

  private write(line: string): void {
    process.stdout.write(`${line}\n`);
  }
}
