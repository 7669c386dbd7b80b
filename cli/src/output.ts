import { Document, isScalar, visit, Scalar } from 'yaml';
import { printable, printableLines } from './screenText.js';
import { describeError, errorJson } from './exitCodes.js';

export const formats = ['table', 'json', 'yaml'] as const;
export type Format = (typeof formats)[number];

/** Not an iterable: a string is one too, of its characters. */
type Lines = () => readonly string[];

/** Writes results: lines for people, JSON objects one per line, or YAML documents. */
export class Output {
  /** The address of the server; empty until it is known. */
  address = '';
  /** Whether a view draws on the terminal; other output would damage its picture. */
  isDrawnOver = false;

  constructor(private readonly format: Format) {}

  /** Whether the output is for programs: then nothing but results is written. */
  get isJson(): boolean {
    return this.format !== 'table';
  }

  /** Writes a result; `lines` is its form for people. */
  result(value: unknown, lines: Lines): void {
    if (this.isJson) this.writeValue(value);
    else for (const line of lines()) this.write(printable(line));
  }

  /** Writes a result with colors. Text from others in the lines must already be printable. */
  drawing(value: unknown, lines: Lines): void {
    if (this.isJson) this.writeValue(value);
    else for (const line of lines()) this.write(line);
  }

  /** Writes a line of a form that was requested by a flag of its own, whatever the format. */
  text(line: string): void {
    this.write(printable(line));
  }

  /** Reports progress, which only people want to see. */
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
    // YAML is made from JSON, so that dates and other values are the same in both.
    if (this.format === 'json') this.write(json);
    else this.write(`---\n${yamlText(JSON.parse(json)).trimEnd()}`);
  }

  private write(line: string): void {
    process.stdout.write(`${line}\n`);
  }
}

/** Control characters that JSON does not escape, but a terminal may obey. */
const raw = /[\u007f-\u009f]/g;

function jsonText(value: unknown): string {
  return escaped(JSON.stringify(value));
}

/** Quotes texts with control characters, so that they are escaped. */
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
