import type { LlamaConfig } from '@relora/engine/plan';

/** A model that was uploaded for jobs to begin at. Times are milliseconds since 1970. */
export interface Weights {
  id: string;
  displayName: string;
  labels: Record<string, string>;
  /** Who uploaded them; empty for those from before there were owners. */
  owner: string;
  state: 'uploading' | 'ready';
  files: WeightsFile[];
  /** Null until ready. */
  report: WeightsReport | null;
  createTimeMs: number;
}

export interface WeightsFile {
  /** Also its name on the disk: one of those that weightsHeader.ts allows. */
  fileName: string;
  sizeBytes: number;
  /** Hexadecimal. */
  sha256: string;
  receivedBytes: number;
}

/** The result of checking them. */
export interface WeightsReport {
  config: LlamaConfig;
  parameterCount: number;
  /** Null without a tokenizer.json. */
  tokenizerVocabularySize: number | null;
  /** What is readable but probably not intended; absent in weights from before this was checked. */
  warnings?: { reason: string; message: string }[];
}
