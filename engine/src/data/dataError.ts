import { EngineError } from '../engineError.js';

/** Everything that can be wrong with data, and when it is said. docs/errors.md is checked against this table. */
export const dataErrors = {
  FILE_UNREADABLE: 'A source file is missing, not a regular file, a link, or could not be read.',
  UTF8_INVALID: 'A text is not UTF-8; the message gives file and byte.',
  LINE_TOO_LONG: 'A line, or a stretch of text without white space, is longer than the limit.',
  JSONL_LINE_INVALID: 'A line of a JSONL file is not a JSON object; the message gives line and byte.',
  FIELD_MISSING: 'A row or line lacks the text field, or it is not a text.',
  PARQUET_INVALID: 'A Parquet file is truncated, damaged, too large in its parts, or lacks the column.',
  TOKENIZER_INVALID: 'A tokenizer.json is malformed, too large, or lacks an end-of-text token.',
  VOCABULARY_TOO_LARGE: 'The text does not hold enough different pieces for the vocabulary that was asked for.',
  DATASET_EMPTY: 'The training part has no tokens.',
  DATASET_TOO_SHORT: 'The training part is shorter than one sequence.',
  DATASET_CORRUPT: 'A prepared data set is not what its manifest says.',
} as const;

/** What is wrong with data; the message names the file, the place, what was expected and what came. */
export class DataError extends EngineError {
  constructor(
    override readonly reason: keyof typeof dataErrors,
    message: string,
    options?: ErrorOptions,
  ) {
    super(reason, message, options);
  }
}
