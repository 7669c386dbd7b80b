import type { DatasetState } from '../store/schema.js';

export type { DatasetState };

import type { EndTokens } from '@relora/engine/plan';

/** Text that is tokenized once. Times are milliseconds since 1970. */
export interface Dataset {
  id: string;
  displayName: string;
  labels: Record<string, string>;
  /** Who uploaded it; empty before there were owners. */
  owner: string;
  state: DatasetState;
  failure: { reason: string; message: string } | null;
  files: DatasetFile[];
  spec: StoredDatasetSpec;
  /** Null until ready. */
  prepared: PreparedDataset | null;
  /** 0 to 1. */
  preparedRatio: number;
  /** How much of it is done in a second; absent where that is not known. */
  preparedRatioPerSecond?: number;
  createTimeMs: number;
  /** Null while it is not deleted. */
  deleteTimeMs: number | null;
  /** From when on a deleted one is gone for good. */
  purgeTimeMs: number | null;
}

/** What is known of a data set without its files and how it was asked for: what a job needs. */
export type DatasetHead = Omit<Dataset, 'files' | 'spec'>;

/** A data set in a list: without what may be long. */
export interface DatasetSummary extends DatasetHead {
  fileCount: number;
  /** Of all files together. */
  sizeBytes: number;
}

/** `auto`: recognized by the content when it is prepared. */
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
  /** Fields of a prompt and its completion, in place of textField; absent for whole texts. */
  pairFields?: { prompt: string; completion: string };
  /** Messages and the template that makes texts of them, in place of textField; absent for texts. */
  chat?: { field: string; template: string; tokens: Record<string, string> };
  seed: number;
  /** Name of the data set that it appends to; absent for none. */
  base?: string;
  /** How many rows may be left out because they cannot be read; absent: none. */
  skipInvalid?: { count: number } | { share: number };
}

export type DatasetTokenizerSpec =
  | { kind: 'bytes' }
  | { kind: 'trainedBpe'; vocabularySize: number }
  /** Content of a tokenizer.json. */
  | { kind: 'huggingFace'; tokenizerJson: string; endTokens?: EndTokens };

/** The content of a tokenizer.json may be megabytes and lies beside it: preparing reads it, nothing else needs it. */
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
  /** What each file was found to be; absent in data sets from before formats were recognized by content. */
  formats?: DatasetFormat[];
  /** Absent for none. */
  skippedRows?: { rowCount: number; totalRowCount: number; first: { reason: string; message: string }[] };
  /** Absent before there were any. */
  warnings?: { reason: string; message: string }[];
}

export interface SplitSize {
  tokenCount: number;
  documentCount: number;
  textBytes: number;
  /** Left out of the training part because the held-out part has the same text; absent before there was a look for them. */
  duplicateDocumentCount?: number;
  /** Of the tokens those that count in the loss; absent where all do. */
  trainedTokenCount?: number;
  /** Tokens within chats that are the one that ends a text, where nothing else says where a chat ends; absent for none. */
  endsWithinCount?: number;
}
