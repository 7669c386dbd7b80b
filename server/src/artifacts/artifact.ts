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
  /** It may be in the folder `base`, for example `base/config.json`, or in that of chat templates. */
  fileName: matching(/^(base\/)?(additional_chat_templates\/)?[A-Za-z0-9][A-Za-z0-9._-]{0,254}$/),
  sizeBytes: count,
  /** Hexadecimal. */
  sha256,
};
export type ArtifactFile = shapes.ObjectOf<typeof artifactFile>;

/** A set of files that never changes once it is ready. Its files were synced and hashed before the row became ready. */
export interface Artifact {
  jobId: string;
  id: string;
  kind: ArtifactKind;
  state: ArtifactState;
  format: ExportFormat;
  weightType: GgufType;
  castErrorMax: number;
  /** Null if not measured. */
  difference: ExportDifference | null;
  /** Number of the cycle of its adapters, from 1; null without adapters. */
  cycle: number | null;
  failure: JobFailure | null;
  /** Steps that its weights were trained for; 0 until that is known. */
  step: number;
  files: ArtifactFile[];
  sizeBytes: number;
  createTimeMs: number;
  /** Absolute path, for tasks that load the model. */
  folder: string;
}

/** The result of making an artifact; its files are in the folder that was named. */
export const exportResult = {
  files: list(10_000, object(artifactFile)),
  castErrorMax: number,
  /** Absent if nothing was compared. */
  difference: orMissing(object(exportDifference)),
  /** Number of the cycle of its adapters, from 1; null without adapters. */
  cycle: orNull(count),
};
export type ExportResult = shapes.ObjectOf<typeof exportResult>;

/** An artifact of the final step that a trainer makes, whether or not it succeeds. */
export const plannedArtifact = {
  id: matching(/^[a-z][a-z0-9-]{0,62}$/),
  format: oneOf(exportFormats),
  weightType: oneOf(ggufTypes),
  /** Number of the cycle of its adapters, from 1; null without adapters. */
  cycle: orNull(count),
  /** Steps that its weights were trained for. */
  step: count,
};
export type PlannedArtifact = shapes.ObjectOf<typeof plannedArtifact>;

/** A finished one; its folder is complete and synced. */
export const sealedArtifact = { ...plannedArtifact, ...exportResult };
export type SealedArtifact = shapes.ObjectOf<typeof sealedArtifact>;

/** What kind of artifact a format gives. */
export function kindOf(format: ExportFormat): ArtifactKind {
  return format === 'peft' ? 'adapter' : 'mergedModel';
}
