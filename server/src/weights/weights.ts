import type { LlamaConfig } from '@relora/engine/plan';

/** A model that was uploaded for jobs to begin at. Times are milliseconds since 1970. */
export interface Weights {
  id: string;
  displayName: string;
  labels: Record<string, string>;
  /** Who uploaded them; empty before there were owners. */
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

/** What was found when they were checked. */
export interface WeightsReport {
  config: LlamaConfig;
  parameterCount: number;
  /** Null without a tokenizer.json. */
  tokenizerVocabularySize: number | null;
  /** What can be read and was probably not meant; absent before it was looked for. */
  warnings?: { reason: string; message: string }[];
}
