import type { ArtifactServiceImplementation } from '@relora/sdk/contract';
import { ArtifactDamaged } from '../artifacts/artifactStore.js';
import { ServiceError } from '../errors.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { parseArtifactName, parseJobName } from './resourceNames.js';
import { toArtifact } from './toProto.js';

/** Large enough that framing costs nothing, small enough that a slow reader holds little. */
const pieceBytes = 256 * 1024;

/** Lists artifacts and streams their files. */
export function artifactService(parts: ApiParts): ArtifactServiceImplementation {
  const { store, artifacts, pageTokens, metrics, stopping } = parts;
  return {
    async listArtifacts(request) {
      const jobId = parseJobName('parent', request.parent);
      const checks = new FieldChecks();
      const artifactsMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      const same = ['artifacts', jobId];
      const after = pageTokens.read<{ id: string }>(same, request.pageToken);
      if ((await store.find(jobId)) === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
      const page = await artifacts.list(jobId, { afterId: after?.id ?? null, artifactsMax });
      return {
        artifacts: page.artifacts.map(toArtifact),
        nextPageToken: pageTokens.write(same, page.next === null ? null : { id: page.next }),
      };
    },

    async *downloadArtifact(request, context) {
      const { jobId, artifactId } = parseArtifactName('name', request.name);
      const { fileName, offsetBytes } = request;
      const artifact = await artifacts.find(jobId, artifactId);
      if (artifact === undefined) throw new ServiceError('ARTIFACT_NOT_FOUND', { jobId, artifactId });
      const file = artifact.files.find((candidate) => candidate.fileName === fileName);
      if (file === undefined)
        throw new ServiceError('ARTIFACT_FILE_NOT_FOUND', { jobId, artifactId, fileName });
      if (offsetBytes < 0 || offsetBytes > file.sizeBytes) {
        throw new ServiceError('OFFSET_BEYOND_END', { fileName, offsetBytes, sizeBytes: file.sizeBytes });
      }
      const damaged = { jobId, artifactId, fileName, expectedSha256: file.sha256 };
      const opened = await artifacts.openFile(artifact, fileName);
      if (opened === 'dataLoss') throw new ServiceError('ARTIFACT_DAMAGED', damaged);
      if (opened === 'notFound')
        throw new ServiceError('ARTIFACT_FILE_NOT_FOUND', { jobId, artifactId, fileName });
      try {
        let offset = offsetBytes;
        // The file's size and hash come first, also when there is nothing left to send.
        if (offset === file.sizeBytes) yield { offsetBytes: offset, file };
        for await (const data of opened.read(offset, pieceBytes)) {
          if (context.signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
          if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
          const piece = Buffer.from(data.buffer, data.byteOffset, data.length);
          yield { offsetBytes: offset, data: piece, ...(offset === offsetBytes ? { file } : {}) };
          offset += data.length;
          metrics.sentBytes.inc(data.length);
        }
      } catch (error) {
        if (error instanceof ArtifactDamaged) throw new ServiceError('ARTIFACT_DAMAGED', damaged);
        throw error;
      } finally {
        await opened.close();
      }
    },
  };
}
