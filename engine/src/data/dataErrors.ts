import { EngineError } from '../engineError.js';

interface Place {
  /** Name for people, never a path of the server. */
  file: string;
}

/** All expected data errors, with the messages that people get. Reasons are stable. */
export const dataErrors = {
  OPTIONS_INVALID: (p: { option: string; expected: string; got: string }) =>
    `${p.option}: expected ${p.expected}, got ${p.got}`,
  FILE_UNREADABLE: (p: Place & { problem: string }) => `${p.file} cannot be read: ${p.problem}`,
  FILE_NOT_REGULAR: (p: Place & { got: string }) => `${p.file}: expected a regular file, got ${p.got}`,
  FILE_CHANGED: (p: Place) =>
    `${p.file} was changed while it was read: it must stay as it is during preparation`,
  UTF8_INVALID: (p: Place & { place: string; byteOffset: number | null; got: string }) =>
    `${p.file}, ${p.place}: expected UTF-8, got ${p.got}`,
  LINE_TOO_LONG: (p: Place & { line: number; byteOffset: number; bytesMax: number }) =>
    `${p.file}, line ${p.line} at byte ${p.byteOffset}: expected at most ${p.bytesMax} bytes, got more`,
  DOCUMENT_TOO_LONG: (p: Place & { row: number; bytesMax: number; got: number }) =>
    `${p.file}, row ${p.row}: expected a text of at most ${p.bytesMax} bytes, got ${p.got}`,
  JSONL_LINE_INVALID: (p: Place & { line: number; byteOffset: number; expected: string; got: string }) =>
    `${p.file}, line ${p.line} at byte ${p.byteOffset}: expected ${p.expected}, got ${p.got}`,
  JSON_INVALID: (p: Place & { place: string; expected: string; got: string }) =>
    `${p.file}, ${p.place}: expected ${p.expected}, got ${p.got}`,
  CSV_INVALID: (p: Place & { place: string; problem: string }) => `${p.file}, ${p.place}: ${p.problem}`,
  FORMAT_UNKNOWN: (p: Place & { expected: string; got: string }) =>
    `${p.file}: expected ${p.expected}, got ${p.got}`,
  COMPRESSION_INVALID: (p: Place & { problem: string }) => `${p.file} cannot be unpacked: ${p.problem}`,
  ROWS_INVALID: (p: { allowed: number; got: number; rows: number; first: string }) =>
    `At most ${p.allowed} rows may be skipped, ${p.got} of ${p.rows} are not valid; the first: ${p.first}`,
  FIELD_MISSING: (p: Place & { place: string; field: string; got: string }) =>
    `${p.file}, ${p.place}: expected text in "${p.field}", got ${p.got}`,
  CHAT_INVALID: (p: Place & { place: string; problem: string }) => `${p.file}, ${p.place}: ${p.problem}`,
  CHAT_TEMPLATE_INVALID: (p: { problem: string }) => `The chat template: ${p.problem}`,
  PARQUET_INVALID: (p: Place & { place: string; problem: string }) => `${p.file}, ${p.place}: ${p.problem}`,
  PARQUET_TOO_LARGE: (p: Place & { place: string; what: string; max: number; got: number }) =>
    `${p.file}, ${p.place}: expected ${p.what} of at most ${p.max}, got ${p.got}`,
  TOKENIZER_INVALID: (p: { file: string; where: string; expected: string; got: string }) =>
    `${p.file}, ${p.where}: expected ${p.expected}, got ${p.got}`,
  TOKENIZER_TIMED_OUT: (p: Place & { cpuSeconds: number }) =>
    `${p.file}: expected a line of text to be encoded within ${p.cpuSeconds} s of processor time, got nothing; RELORA_TOKENIZER_CPU_SECONDS allows more, and the same request tries it again`,
  VOCABULARY_TOO_LARGE: (p: { asked: number; max: number }) =>
    `A vocabulary of ${p.asked} tokens was asked for, the training text gives at most ${p.max}`,
  TEXT_LOST: (p: Place & { document: number; characters: number; known: number; share: number }) =>
    `${p.file}, document ${p.document}: the tokenizer knows ${p.known} of its ${p.characters} characters, and ${Math.ceil(100 * p.share)} % of all text is unknown to it`,
  DATASET_EMPTY: (p: { fileCount: number; heldOutDocumentCount: number; duplicateDocumentCount?: number }) =>
    `The training part has no text: ${p.fileCount} files were read, ${p.heldOutDocumentCount} documents are held out` +
    (p.duplicateDocumentCount ? `, and ${p.duplicateDocumentCount} had the same text as one of those` : ''),
  DATASET_TOO_SHORT: (p: { tokenCount: number; sequenceLength: number }) =>
    `Expected at least ${p.sequenceLength + 1} tokens, one sequence of ${p.sequenceLength} and its last target, got ${p.tokenCount}`,
  DATASET_CORRUPT: (p: { file: string; expected: string; got: string }) =>
    `The prepared data set is damaged: ${p.file}: expected ${p.expected}, got ${p.got}`,
  DATASET_FORMAT_UNKNOWN: (p: { expected: number; got: number }) =>
    `The data set was prepared in format ${p.got}, this engine reads format ${p.expected}: prepare it again`,
} as const;

export type DataErrorReason = keyof typeof dataErrors;
export type DataErrorDetail<R extends DataErrorReason> = Parameters<(typeof dataErrors)[R]>[0];

/** An error in data from outside; `detail` has every value that its message contains. */
export class DataError<R extends DataErrorReason = DataErrorReason> extends EngineError {
  declare readonly reason: R;

  constructor(
    reason: R,
    readonly detail: DataErrorDetail<R>,
    options?: ErrorOptions,
  ) {
    super(reason, (dataErrors[reason] as (detail: DataErrorDetail<R>) => string)(detail), options);
  }
}

/** The value found, shortened to a single line for a message. */
export function describeValue(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === 'object' && value !== null) return 'an object';
  const text = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

/** The first of the available names, shortened for a message. */
export function listNames(names: readonly string[]): string {
  const first = names.slice(0, 20).join(', ').slice(0, 300) || 'none';
  return first + (names.length > 20 ? ` and ${names.length - 20} more` : '');
}
