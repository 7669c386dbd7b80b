import {
  exportDifference,
  exportFormats,
  ggufTypes,
  shapes,
  type ExportDifference,
  type ExportFormat,
  type GgufType,
} from '@relora/engine/plan';
import type { JobFailure } from '../jobs/job.js';
import type { ArtifactKind, ArtifactState } from '../store/schema.js';

export type { ArtifactKind, ArtifactState };

const { count, list, matching, number, object, oneOf, orMissing, orNull, sha256 } = shapes;

const artifactFile = {
  /** It may be in a folder, `base/config.json`, and there in that of the templates. */
  fileName: matching(/^(base\/)?(additional_chat_templates\/)?[A-Za-z0-9][A-Za-z0-9._-]{0,254}$/),
  sizeBytes: count,
  /** Hexadecimal. */
  sha256,
};
export type ArtifactFile = shapes.ObjectOf<typeof artifactFile>;

/** A set of files; once ready it never changes. Its files were synced and hashed before its row said so. */
export interface Artifact {
  jobId: string;
  id: string;
  kind: ArtifactKind;
  state: ArtifactState;
  format: ExportFormat;
  weightType: GgufType;
  castErrorMax: number;
  /** Null where that was not measured. */
  difference: ExportDifference | null;
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
export const exportResult = {
  files: list(10_000, object(artifactFile)),
  castErrorMax: number,
  /** Absent where nothing was to be compared. */
  difference: orMissing(object(exportDifference)),
  /** Number of its adapters, from 1; null without. */
  cycle: orNull(count),
};
export type ExportResult = shapes.ObjectOf<typeof exportResult>;

/** What a trainer exports of its last step, whatever comes of it. */
export const plannedArtifact = {
  id: matching(/^[a-z][a-z0-9-]{0,62}$/),
  format: oneOf(exportFormats),
  weightType: oneOf(ggufTypes),
  /** Number of its adapters, from 1; null without. */
  cycle: orNull(count),
  /** Steps taken before it. */
  step: count,
};
export type PlannedArtifact = shapes.ObjectOf<typeof plannedArtifact>;

/** What it exported; its folder is complete and synced. */
export const sealedArtifact = { ...plannedArtifact, ...exportResult };
export type SealedArtifact = shapes.ObjectOf<typeof sealedArtifact>;

/** What a format makes. */
export function kindOf(format: ExportFormat): ArtifactKind {
  return format === 'peft' ? 'adapter' : 'mergedModel';
}
