import { isUtf8 } from 'node:buffer';

/** The position of a value in the bytes of a row. */
export interface ValueSlice {
  start: number;
  end: number;
}

/** A row's content: a parsed object, or the positions of its values if the row cannot be parsed as a whole. */
export type JsonRow =
  { kind: 'parsed'; value: unknown } | { kind: 'sliced'; values: ReadonlyMap<string, ValueSlice> };

/**
 * Parses a row of JSON, of which only the needed fields must be valid: if the whole is not JSON, or not UTF-8, values are located without
 * parsing them, since another field may contain Python's NaN. If that fails too, throws the error of JSON.parse, or null for bytes that are
 * not UTF-8.
 */
export function parseJsonRow(bytes: Buffer): JsonRow {
  let problem: unknown = null;
  if (isUtf8(bytes)) {
    try {
      return { kind: 'parsed', value: JSON.parse(bytes.toString('utf8')) as unknown };
    } catch (error) {
      problem = error;
    }
  }
  const values = sliceObject(bytes, 0, bytes.length);
  if (values === null) throw problem;
  return { kind: 'sliced', values };
}

/** The positions of an object's values, by name; of duplicate names the last, as in JSON.parse. Null if it is not an object. */
export function sliceObject(bytes: Buffer, start: number, end: number): Map<string, ValueSlice> | null {
  // As Latin-1 each byte is one character, and JSON's structural characters are ASCII.
  const scanner = new Scanner(bytes.toString('latin1', start, end));
  const values = new Map<string, ValueSlice>();
  try {
    scanner.take('{');
    for (let isFirst = true; !scanner.tries('}'); isFirst = false) {
      if (!isFirst) scanner.take(',');
      const key = scanner.value();
      scanner.take(':');
      const value = scanner.value();
      const name: unknown = JSON.parse(bytes.toString('utf8', start + key.start, start + key.end));
      if (typeof name !== 'string') return null;
      values.set(name, { start: start + value.start, end: start + value.end });
    }
    return scanner.isAtEnd() ? values : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** Numbers and literals, including Python's. */
const literal = /(?:true|false|null|NaN|-?Infinity|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.+-])/y;
const space = /[ \t\r\n]*/y;

/** Finds the ends of values; the content of lists and objects is not checked. */
class Scanner {
  private at = 0;

  constructor(private readonly text: string) {}

  isAtEnd(): boolean {
    this.skip(space);
    return this.at === this.text.length;
  }

  tries(character: string): boolean {
    this.skip(space);
    if (this.text[this.at] !== character) return false;
    this.at++;
    return true;
  }

  take(character: string): void {
    if (!this.tries(character)) throw new SyntaxError(`no ${character}`);
  }

  value(): ValueSlice {
    this.skip(space);
    const start = this.at;
    const first = this.text[start];
    if (first === '"') this.string();
    else if (first === '{' || first === '[') this.container();
    else this.must(literal);
    return { start, end: this.at };
  }

  /** Skips to the first quotation mark without an odd number of backslashes before it. */
  private string(): void {
    for (let isEscaped = true; isEscaped;) {
      const from = this.at + 1;
      const end = this.text.indexOf('"', from);
      if (end < 0) throw new SyntaxError('a text without an end');
      let first = end;
      while (first > from && this.text[first - 1] === '\\') first--;
      this.at = end;
      isEscaped = (end - first) % 2 === 1;
    }
    this.at++;
  }

  private container(): void {
    let depth = 0;
    do {
      const character = this.text[this.at];
      if (character === undefined) throw new SyntaxError('an early end');
      if (character === '"') {
        this.string();
        continue;
      }
      if (character === '{' || character === '[') depth++;
      if (character === '}' || character === ']') depth--;
      this.at++;
    } while (depth > 0);
  }

  private must(pattern: RegExp): void {
    if (!this.skip(pattern)) throw new SyntaxError(`no value at ${this.at}`);
  }

  private skip(pattern: RegExp): boolean {
    pattern.lastIndex = this.at;
    if (!pattern.test(this.text)) return false;
    this.at = pattern.lastIndex;
    return true;
  }
}
