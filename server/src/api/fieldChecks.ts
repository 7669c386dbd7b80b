import { fieldProblemsMax, quote, ServiceError, type FieldProblem } from '../errors.js';
import { capitals, type EnumWords } from './enums.js';

export interface NumberRange {
  min: number;
  max: number;
  /** The least value itself is refused. */
  above?: boolean;
  /** The greatest value itself is refused. */
  below?: boolean;
}

/**
 * Collects the problems of a request, up to a limit after which the rest is not looked at. A check that fails records its problem and
 * returns a value that later checks can use, so each mistake is reported once and hides no other.
 */
export class FieldChecks {
  readonly problems: FieldProblem[] = [];

  /** `reason`: that of the error that is thrown if there are too many problems. */
  constructor(private readonly reason: 'REQUEST_INVALID' | 'JOB_SPEC_INVALID' = 'REQUEST_INVALID') {}

  /** Throws if there are too many problems already. */
  add(field: string, expected: string, got: unknown = ''): void {
    if (this.problems.length === fieldProblemsMax)
      throw new ServiceError(this.reason, { problems: this.problems });
    this.problems.push({ field, expected, got: typeof got === 'string' ? got : String(got) });
  }

  /** Whether a field, or a field inside it, already has a problem. */
  isWrong(field: string): boolean {
    return this.problems.some((problem) => problem.field === field || problem.field.startsWith(`${field}.`));
  }

  /** Throws REQUEST_INVALID with every problem. */
  throwIfWrong(): void {
    if (this.problems.length > 0) throw new ServiceError('REQUEST_INVALID', { problems: this.problems });
  }

  /** A list of at most `max` entries; entries beyond that are not checked. */
  count(field: string, values: readonly unknown[], max: number): void {
    if (values.length > max) this.add(field, `at most ${max} entries`, values.length);
  }

  /** A whole number in a range; the default when unset. */
  integer(field: string, value: number | undefined, fallback: number, min: number, max: number): number {
    if (value === undefined) return fallback;
    if (Number.isSafeInteger(value) && value >= min && value <= max) return value;
    this.add(field, `a whole number from ${min} to ${max}`, value);
    return fallback;
  }

  /** A finite number in a range; the default when unset. Minus zero becomes zero. */
  number(field: string, value: number | undefined, fallback: number, range: NumberRange): number {
    if (value === undefined) return fallback;
    const { min, max, above = false, below = false } = range;
    if (
      Number.isFinite(value) &&
      (above ? value > min : value >= min) &&
      (below ? value < max : value <= max)
    )
      return value + 0;
    this.add(
      field,
      `a number ${above ? 'above' : 'from'} ${min} ${below ? 'and below' : 'to'} ${max}`,
      Object.is(value, -0) ? '-0' : value,
    );
    return fallback;
  }

  /** One of the given words, for enums and names. */
  choice<const T>(
    field: string,
    value: string,
    choices: Readonly<Record<string, T>>,
    names: string,
  ): T | undefined {
    if (Object.hasOwn(choices, value)) return choices[value];
    // ts-proto gives every unknown number this one name.
    this.add(
      field,
      names,
      value === 'UNRECOGNIZED' ? 'a number that this server does not know' : quote(value),
    );
    return undefined;
  }

  /** One of the words of an enum, or of those in `accepted`, with a `note` about the others; `unset` if the field is unset. */
  word<Word extends string, Unset>(
    field: string,
    value: string | undefined,
    { from, words }: EnumWords<Word>,
    unset: Unset,
    accepted: readonly string[] = words,
    note = '',
  ): Word | Unset {
    if (value === undefined || value.endsWith('_UNSPECIFIED')) return unset;
    const choices = Object.fromEntries(Object.entries(from).filter(([, word]) => accepted.includes(word)));
    return this.choice(field, value, choices, listOf(accepted.map(capitals)) + note) ?? unset;
  }

  /** Text for people: valid Unicode without characters that control a terminal or change the direction of text. */
  text(field: string, value: string, lengthMax: number, options: { lines?: boolean } = {}): string {
    const length = lengthOf(value, lengthMax);
    if (length > lengthMax) this.add(field, `at most ${lengthMax} characters`, length);
    else {
      const problem = textProblem(value, options.lines ?? false);
      if (problem !== undefined) this.add(field, 'text without control characters', problem);
    }
    return value;
  }

  /** An id that a client may choose; empty for none. */
  id(field: string, value: string): string | null {
    if (value === '') return null;
    if (!idPattern.test(value))
      this.add(
        field,
        'between 4 and 63 of a-z 0-9 -, beginning with a letter, ending with a letter or digit',
        quote(value),
      );
    return value;
  }

  /** A UUID that makes a retry safe; empty for none. */
  requestId(value: string): string | null {
    if (value === '') return null;
    if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(value))
      this.add('request_id', 'a UUID', quote(value));
    return value.toLowerCase();
  }

  labels(field: string, value: Record<string, string>): Record<string, string> {
    const entries = Object.entries(value);
    if (entries.length > 32) this.add(field, 'at most 32 labels', entries.length);
    for (const [key, text] of entries.slice(0, 32)) {
      if (!/^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$/.test(key)) {
        this.add(
          field,
          'keys of 1 to 63 letters, digits and _ . / -, beginning with a letter or digit',
          quote(key),
        );
      }
      this.text(`${field}[${quote(key)}]`, text, 256);
    }
    return Object.fromEntries(entries);
  }
}

/** Number of characters, counted only if the text may be too long. */
function lengthOf(value: string, lengthMax: number): number {
  if (value.length <= lengthMax) return value.length;
  // Not `for … of`, which creates a string for each character: a prompt has a million.
  let length = value.length;
  for (let at = 0; at < value.length - 1; at++) if (isPair(value, at)) length--;
  return length;
}

/** Whether the code unit at this place and the next one are a surrogate pair. */
function isPair(value: string, at: number): boolean {
  return (value.charCodeAt(at) & 0xfc00) === 0xd800 && (value.charCodeAt(at + 1) & 0xfc00) === 0xdc00;
}

/** A, B or C */
export function listOf(names: readonly string[]): string {
  return names.length < 2 ? names.join() : `${names.slice(0, -1).join(', ')} or ${names.at(-1)}`;
}

export const idPattern = /^[a-z][a-z0-9-]{2,61}[a-z0-9]$/;

function textProblem(value: string, lines: boolean): string | undefined {
  // A decoder writes this for bytes that are not UTF-8: what was meant is lost, and is not guessed.
  if (value.includes('\ufffd')) return 'U+FFFD, which broken UTF-8 becomes';
  // Not a regular expression: it would have to contain the very characters that it forbids.
  for (let at = 0; at < value.length; at++) {
    const code = value.charCodeAt(at);
    if (isPair(value, at)) {
      at++;
      continue;
    }
    const isLine = code === 0x09 || code === 0x0a || code === 0x0d;
    const isControl = (code < 0x20 && !(lines && isLine)) || (code >= 0x7f && code <= 0x9f);
    const turnsText = (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
    const isHalf = code >= 0xd800 && code <= 0xdfff;
    if (isControl || (turnsText && !lines) || isHalf)
      return `U+${code.toString(16).toUpperCase().padStart(4, '0')}`;
  }
  return undefined;
}
