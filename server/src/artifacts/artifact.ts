import type { ExportFormat, GgufType } from '@relora/engine/plan';
import type { JobFailure } from '../jobs/job.js';
import type { ArtifactKind, ArtifactState } from '../store/schema.js';

export type { ArtifactKind, ArtifactState };

export interface ArtifactFile {
  /** It may be in one folder, `base/config.json`. */
  fileName: string;
  sizeBytes: number;
  /** Hexadecimal. */
  sha256: string;
}

/** A set of files; once ready it never changes. Its files were synced and hashed before its row said so. */
export interface Artifact {
  jobId: string;
  id: string;
  kind: ArtifactKind;
  state: ArtifactState;
  format: ExportFormat;
  weightType: GgufType;
  castErrorMax: number;
  /** Number of its adapters, from 1; null without. */
  cycle: number | null;
  failure: JobFailure | null;
  /** Steps taken before it was made; 0 until that is known. */
  step: number;
  files: ArtifactFile[];
  sizeBytes: number;
  createTimeMs: number;
  /** Absolute; for tasks that load the model. */
  folder: string;
}

/** What making an artifact gives; its files lie in the folder that was named. */
export interface ExportResult {
  files: ArtifactFile[];
  castErrorMax: number;
  /** Number of its adapters, from 1; null without. */
  cycle: number | null;
}

/** What a trainer exports of its last step, whatever comes of it. */
export interface PlannedArtifact {
  id: string;
  format: ExportFormat;
  weightType: GgufType;
  /** Number of its adapters, from 1; null without. */
  cycle: number | null;
  step: number;
}

/** What it exported; its folder is complete and synced. */
export interface SealedArtifact extends PlannedArtifact, ExportResult {}

/** What a format makes. */
export function kindOf(format: ExportFormat): ArtifactKind {
  return format === 'peft' ? 'adapter' : 'mergedModel';
}
