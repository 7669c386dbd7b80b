import type { Artifact } from '../artifacts/artifact.js';
import type { ArtifactStore } from '../artifacts/artifactStore.js';
import { ArtifactDamaged } from '../artifacts/checkedRead.js';
import { ServiceError } from '../errors.js';
import { streamedBytes } from '../headroom.js';

export interface ArtifactFileReader {
  /** The bytes from an offset. Throws ARTIFACT_DAMAGED. */
  pieces(start: number): AsyncGenerator<Buffer>;
  close(): Promise<void>;
}

/** Opens a file of a ready artifact; the caller closes it. Throws ARTIFACT_FILE_NOT_FOUND and ARTIFACT_DAMAGED. */
export async function openArtifactFile(
  artifacts: ArtifactStore,
  artifact: Artifact,
  fileName: string,
): Promise<ArtifactFileReader> {
  const { jobId, id: artifactId, files } = artifact;
  const file = files.find((candidate) => candidate.fileName === fileName);
  const damaged = { jobId, artifactId, fileName, expectedSha256: file?.sha256 ?? '' };
  const opened = await artifacts.openFile(artifact, fileName);
  if (opened === 'dataLoss') throw new ServiceError('ARTIFACT_DAMAGED', damaged);
  if (opened === 'notFound')
    throw new ServiceError('ARTIFACT_FILE_NOT_FOUND', { jobId, artifactId, fileName });
  return {
    async *pieces(start) {
      try {
        for await (const data of opened.read(start, streamedBytes))
          yield Buffer.from(data.buffer, data.byteOffset, data.length);
      } catch (error) {
        if (error instanceof ArtifactDamaged) throw new ServiceError('ARTIFACT_DAMAGED', damaged);
        throw error;
      }
    },
    close: () => opened.close(),
  };
}
