import { Document, isScalar, visit, Scalar } from 'yaml';
import { printable, printableLines } from './screenText.js';
import { describeError, errorJson } from './exitCodes.js';

export const formats = ['table', 'json', 'yaml'] as const;
export type Format = (typeof formats)[number];

/** Where results go: lines for people, one JSON object a line, or YAML documents. */
export class Output {
  /** The server that is talked to; empty until there is one. */
  address = '';
  /** Drawn over by a view; what is said meanwhile would tear it. */
  isDrawnOver = false;

  constructor(private readonly format: Format) {}

  /** Whether programs read it: then nothing but results is written. */
  get isJson(): boolean {
    return this.format !== 'table';
  }

  /** A result; `lines` says it to people. */
  result(value: unknown, lines: () => Iterable<string>): void {
    if (this.isJson) this.writeValue(value);
    else for (const line of lines()) this.write(printable(line));
  }

  /** A result in colors. What the lines show of others' text was made printable before. */
  drawing(value: unknown, lines: () => Iterable<string>): void {
    if (this.isJson) this.writeValue(value);
    else for (const line of lines()) this.write(line);
  }

  /** A line of a form that was asked for by its own flag, whatever the format. */
  text(line: string): void {
    this.write(printable(line));
  }

  /** Something on the way, which only people want to know. */
  note(text: string): void {
    if (!this.isJson && !this.isDrawnOver) process.stderr.write(`${printableLines(text)}\n`);
  }

  error(error: unknown): void {
    const text = this.isJson
      ? jsonText(errorJson(error))
      : describeError(error, this.address).map(printable).join('\n');
    process.stderr.write(`${text}\n`);
  }

  private writeValue(value: unknown): void {
    const json = jsonText(value);
    // By JSON, which says how messages are written: dates and the rest are the same in both.
    if (this.format === 'json') this.write(json);
    else this.write(`---\n${yamlText(JSON.parse(json)).trimEnd()}`);
  }

  private write(line: string): void {
    process.stdout.write(`${line}\n`);
  }
}

/** Control characters that JSON leaves as they are, and that a terminal may obey. */
const raw = /[\u007f-\u009f]/g;

function jsonText(value: unknown): string {
  return escaped(JSON.stringify(value));
}

/** Texts with control characters in quotes, which have a way to write them. */
function yamlText(value: unknown): string {
  const document = new Document(value);
  const quote = (node: unknown): void => {
    if (isScalar(node) && typeof node.value === 'string' && /\p{Cc}/u.test(node.value.replaceAll('\n', '')))
      node.type = Scalar.QUOTE_DOUBLE;
  };
  visit(document, { Scalar: (_, node) => quote(node) });
  return escaped(document.toString());
}

function escaped(text: string): string {
  return text.replace(raw, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
