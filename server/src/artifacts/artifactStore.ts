import type { Database } from '../store/database.js';

export interface ArtifactFile {
  /** Without folders. */
  fileName: string;
  sizeBytes: number;
  /** Hexadecimal. */
  sha256: string;
}

/** A sealed set of files; never changes. */
export interface Artifact {
  jobId: string;
  id: string;
  kind: 'mergedModel';
  /** Steps taken before it was made. */
  step: number;
  files: ArtifactFile[];
  sizeBytes: number;
  createTimeMs: number;
  /** Absolute; for tasks that load the model. */
  folder: string;
}

/** One file of an artifact, open for reading. Deleting the artifact does not harm a download that has begun. */
export interface OpenArtifactFile {
  file: ArtifactFile;
  /** Bytes from the offset on in pieces of at most pieceBytes, each freshly allocated. Throws ArtifactDamaged when the file ends early. */
  read(offset: number, pieceBytes: number): AsyncGenerator<Uint8Array>;
  close(): Promise<void>;
}

/** The bytes on disk are not those that were sealed. */
export class ArtifactDamaged extends Error {
  override name = 'ArtifactDamaged';
}

/** Artifacts of jobs: rows and the folders they name. */
export class ArtifactStore {
  constructor(
    private readonly db: Database,
    private readonly dataFolder: string,
  ) {}

  async find(_jobId: string, _artifactId: string): Promise<Artifact | undefined> {
    throw new Error('not yet');
  }

  /** One page, oldest first; `next` is the id to pass as afterId, null at the end. */
  async list(_jobId: string, _page: { afterId: string | null; artifactsMax: number }): Promise<{ artifacts: Artifact[]; next: string | null }> {
    throw new Error('not yet');
  }

  async newest(_jobId: string): Promise<Artifact | undefined> {
    throw new Error('not yet');
  }

  /** `notFound`: no such artifact or file. `dataLoss`: missing, of another length, or not a regular file. The caller closes it. */
  async open(_jobId: string, _artifactId: string, _fileName: string): Promise<OpenArtifactFile | 'notFound' | 'dataLoss'> {
    throw new Error('not yet');
  }
}
