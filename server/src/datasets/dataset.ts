import type { DatasetState } from '../store/schema.js';

export type { DatasetState };

import type { EndTokens } from '@relora/engine/plan';

/** Text that is tokenized once. Times are milliseconds since 1970. */
export interface Dataset {
  id: string;
  displayName: string;
  labels: Record<string, string>;
  /** Who uploaded it; empty for those from before there were owners. */
  owner: string;
  state: DatasetState;
  failure: { reason: string; message: string } | null;
  files: DatasetFile[];
  spec: StoredDatasetSpec;
  /** Null until ready. */
  prepared: PreparedDataset | null;
  /** 0 to 1. */
  preparedRatio: number;
  /** Share of the preparation that is done per second; absent if unknown. */
  preparedRatioPerSecond?: number;
  createTimeMs: number;
  /** Null if not deleted. */
  deleteTimeMs: number | null;
  /** When a deleted one is removed for good. */
  purgeTimeMs: number | null;
}

/** A data set without its files and its specification: enough for a job. */
export type DatasetHead = Omit<Dataset, 'files' | 'spec'>;

/** A data set in a list, without what may be long. */
export interface DatasetSummary extends DatasetHead {
  fileCount: number;
  /** Of all files together. */
  sizeBytes: number;
}

/** `auto`: recognized from the content when it is prepared. */
export type DatasetFormat = 'auto' | 'text' | 'jsonl' | 'json' | 'csv' | 'parquet';
export type DatasetSplit = 'train' | 'heldOut';

export interface DatasetFile {
  /** For people; never a path. */
  fileName: string;
  /** Path on the server, resolved and allowed; null for uploads. */
  serverPath: string | null;
  format: DatasetFormat;
  /** Null: divided by heldOutShare. */
  split: DatasetSplit | null;
  sizeBytes: number;
  /** Hexadecimal; null for files on the server. */
  sha256: string | null;
  receivedBytes: number;
}

/** With every default filled in. */
export interface DatasetSpec {
  tokenizer: DatasetTokenizerSpec;
  heldOutShare: number;
  textField: string;
  /** Fields of a prompt and its completion, instead of textField; absent for whole texts. */
  pairFields?: { prompt: string; completion: string };
  /** Field of the messages, and the template that turns them into text, instead of textField; absent otherwise. */
  chat?: { field: string; template: string; tokens: Record<string, string> };
  seed: number;
  /** Name of the data set that it appends to; absent for none. */
  base?: string;
  /** How many unreadable rows may be left out; absent: none. */
  skipInvalid?: { count: number } | { share: number };
}

export type DatasetTokenizerSpec =
  | { kind: 'bytes' }
  | { kind: 'trainedBpe'; vocabularySize: number }
  /** Content of a tokenizer.json. */
  | { kind: 'huggingFace'; tokenizerJson: string; endTokens?: EndTokens };

/** The content of a tokenizer.json may be megabytes and is stored separately: only the preparation reads it. */
export type StoredDatasetSpec = Omit<DatasetSpec, 'tokenizer'> & {
  tokenizer:
    Exclude<DatasetTokenizerSpec, { kind: 'huggingFace' }> | { kind: 'huggingFace'; endTokens?: EndTokens };
};

export interface PreparedDataset {
  tokenizer: {
    kind: 'bytes' | 'trainedBpe' | 'huggingFace';
    vocabularySize: number;
    endOfTextId: number;
    sha256: string;
  };
  train: SplitSize;
  heldOut: SplitSize;
  manifestSha256: string;
  /** The recognized format of each file; absent in data sets from before that. */
  formats?: DatasetFormat[];
  /** Absent for none. */
  skippedRows?: { rowCount: number; totalRowCount: number; first: { reason: string; message: string }[] };
  /** Absent in data sets from before there were warnings. */
  warnings?: { reason: string; message: string }[];
}

export interface SplitSize {
  tokenCount: number;
  documentCount: number;
  textBytes: number;
  /** Documents left out of the training part because the held-out part has the same text; absent in data sets from before that check. */
  duplicateDocumentCount?: number;
  /** Tokens that count in the loss; absent if all do. */
  trainedTokenCount?: number;
  /** Number of end tokens within chats, if the ends of chats are not stored; absent for none. */
  endsWithinCount?: number;
}
