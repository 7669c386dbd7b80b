import { createHash } from 'node:crypto';
import {
  ExportWeightsRequest,
  Artifact as ArtifactProto,
  type ArtifactServiceDefinition,
  type DeepPartial,
  type DownloadArtifactRequest,
  type DownloadArtifactResponse,
} from '@relora/sdk/contract';
import type { Artifact } from '../artifacts/artifact.js';
import type { ArtifactCursor, ArtifactStore } from '../artifacts/artifactStore.js';
import { ServiceError } from '../errors.js';
import type { CallContext, Implementation } from '../grpc/service.js';
import { enums } from './enums.js';
import { parseExportRequest } from './exportSpec.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import { fillPage } from './fillPage.js';
import { openArtifactFile } from './openArtifactFile.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseArtifactName, parseJobName } from './resourceNames.js';
import { requireUndeleted } from './submitJob.js';
import { toArtifact } from './toProto.js';
import type { Principal } from '../access/principal.js';

/** Makes artifacts, lists them and streams their files. */
export function artifactService(parts: ApiParts): Implementation<typeof ArtifactServiceDefinition> {
  const { store, artifacts, exports, pageTokens } = parts;
  return {
    async listArtifacts(request, { caller }) {
      const jobId = parseJobName(caller.tenant, 'parent', request.parent);
      const checks = new FieldChecks();
      const artifactsMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      // Not the same as in version 0.1.0, whose tokens have places without a time.
      const same = ['artifacts by time', jobId];
      const after = pageTokens.read<ArtifactCursor>(same, request.pageToken);
      await requireJob(store, jobId);
      const { messages, next } = await fillPage({
        after,
        itemsMax: artifactsMax,
        bytesMax: parts.config.pageBytesMax,
        read: async (place, itemsMax) => {
          const page = await artifacts.list(jobId, { after: place, artifactsMax: itemsMax });
          return { items: page.artifacts, next: page.next };
        },
        placeOf: ({ createTimeMs, id }) => ({ createTimeMs, id }),
        type: ArtifactProto,
        toMessage: toArtifact,
      });
      return { artifacts: messages, nextPageToken: pageTokens.write(same, next) };
    },

    exportWeights: async (request, { caller }) => ({ artifact: await exportWeights(parts, request, caller) }),

    async getArtifact(request, { caller }) {
      const { jobId, artifactId } = parseArtifactName(caller.tenant, 'name', request.name);
      return { artifact: toArtifact(await requireArtifact(artifacts, jobId, artifactId)) };
    },

    async deleteArtifact(request, { caller }) {
      const { jobId, artifactId } = parseArtifactName(caller.tenant, 'name', request.name);
      const outcome = await exports.delete(jobId, artifactId);
      if (outcome === 'notFound') throw new ServiceError('ARTIFACT_NOT_FOUND', { jobId, artifactId });
      if (outcome !== 'removed')
        throw new ServiceError('WEIGHTS_IN_USE', { name: request.name, job: outcome.usedBy });
      return {};
    },

    downloadArtifact: (request, context) => downloadArtifact(parts, request, context),
  };
}

/** Stores the request for an artifact, which is made later. */
async function exportWeights(
  { store, artifacts, exports, checkpoints }: ApiParts,
  request: ExportWeightsRequest,
  { tenant }: Principal,
): Promise<ArtifactProto> {
  const jobId = parseJobName(tenant, 'job', request.job);
  const checks = new FieldChecks();
  const wanted = parseExportRequest(checks, request);
  const checkpointStep = checks.integer('checkpoint_step', request.checkpointStep, -1, 0, 2 ** 31 - 1);
  const isBest = checks.word('weights', request.weights, enums.ExportedWeights, 'last' as const) === 'best';
  if (isBest && request.checkpointStep !== undefined)
    checks.add('checkpoint_step', 'unset if weights is BEST, which names one', request.checkpointStep);
  const requestId = checks.requestId(request.requestId);
  checks.throwIfWrong();
  const job = await requireJob(store, jobId);
  requireUndeleted(job);
  const submission = await exports.submit({
    ...wanted,
    jobId,
    checkpointStep: isBest ? 'best' : request.checkpointStep === undefined ? null : checkpointStep,
    isRunning: job.state === 'starting' || job.state === 'running',
    requestId,
    requestDigest: digestOf(request),
  });
  if (submission === 'conflict')
    throw new ServiceError('REQUEST_ID_REUSED', { requestId: request.requestId });
  if (submission === 'noCheckpoint') {
    const kept = await checkpoints.list(jobId);
    throw new ServiceError('CHECKPOINT_NOT_FOUND', {
      jobId,
      wanted: isBest
        ? ' of the lowest held-out loss (checkpoint.keep_best keeps it)'
        : request.checkpointStep === undefined
          ? ''
          : ` of step ${checkpointStep}`,
      steps: kept.map(({ step }) => step).join(', '),
    });
  }
  return toArtifact(await requireArtifact(artifacts, jobId, submission.artifactId));
}

/** The bytes of a file from an offset, in pieces. */
async function* downloadArtifact(
  { artifacts, downloadPlaces, metrics, stopping }: ApiParts,
  request: DownloadArtifactRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): AsyncGenerator<DeepPartial<DownloadArtifactResponse>> {
  const { jobId, artifactId } = parseArtifactName(caller.tenant, 'name', request.name);
  const { fileName, offsetBytes } = request;
  const artifact = await requireArtifact(artifacts, jobId, artifactId);
  requireReady(artifact);
  const file = artifact.files.find((candidate) => candidate.fileName === fileName);
  if (file === undefined) throw new ServiceError('ARTIFACT_FILE_NOT_FOUND', { jobId, artifactId, fileName });
  if (offsetBytes < 0 || offsetBytes > file.sizeBytes) {
    throw new ServiceError('OFFSET_BEYOND_END', { fileName, offsetBytes, sizeBytes: file.sizeBytes });
  }
  using _place = downloadPlaces.take();
  const opened = await openArtifactFile(artifacts, artifact, fileName);
  try {
    let offset = offsetBytes;
    // The file's size and hash come first, even if nothing is left to send.
    if (offset === file.sizeBytes) yield { offsetBytes: offset, file };
    for await (const data of opened.pieces(offset)) {
      if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
      if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
      yield { offsetBytes: offset, data, ...(offset === offsetBytes ? { file } : {}) };
      offset += data.length;
      metrics.sentBytes.inc(data.length);
    }
  } finally {
    await opened.close();
  }
}

async function requireArtifact(
  artifacts: ArtifactStore,
  jobId: string,
  artifactId: string,
): Promise<Artifact> {
  const artifact = await artifacts.find(jobId, artifactId);
  if (artifact === undefined) throw new ServiceError('ARTIFACT_NOT_FOUND', { jobId, artifactId });
  return artifact;
}

/** Only a sealed artifact has files. */
export function requireReady({ jobId, id, state }: Artifact): void {
  if (state !== 'ready')
    throw new ServiceError('ARTIFACT_NOT_READY', { jobId, artifactId: id, state: state.toUpperCase() });
}

/** SHA-256 of everything that a request asks for. */
function digestOf(request: ExportWeightsRequest): string {
  const asked = ExportWeightsRequest.encode({ ...request, requestId: '' }).finish();
  return createHash('sha256').update('ExportWeights').update(asked).digest('hex');
}
