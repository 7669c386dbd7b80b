import { basename } from 'node:path';
import { ExportedWeights } from '@relora/sdk/contract';
import type { Artifact } from '../artifacts/artifact.js';
import { quote, ServiceError } from '../errors.js';
import type { Job } from '../jobs/job.js';
import type { ModelPlace } from '../trainer/messages.js';
import { requireReady } from './artifactService.js';
import { enums } from './enums.js';
import type { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { datasetIdOf, parseArtifactName, parseJobName } from './resourceNames.js';

/** The model that a request names. */
export interface WantedModel {
  model: string;
  weights: ExportedWeights;
}

export function checkModel(checks: FieldChecks, request: WantedModel): void {
  const weights = checks.word('weights', request.weights, enums.ExportedWeights, 'last' as const);
  if (weights === 'best' && request.model.includes('/artifacts/'))
    checks.add('weights', 'unset for an artifact, which has its weights', 'BEST');
  if (!/^jobs\//.test(request.model))
    checks.add('model', 'jobs/{job} or jobs/{job}/artifacts/{artifact}', quote(request.model));
}

interface FoundModel extends ModelPlace {
  /** The job that the weights belong to. */
  jobId: string;
  /** Folders of the data folder that the model is in. */
  folders: string[];
  /** The length that its job was trained with. */
  sequenceLength: number;
  /** Steps that its weights were trained for. */
  step: number;
}

/**
 * The named artifact, or a model of a job: the checkpoint with the lowest held-out loss if that is asked for; else the newest artifact;
 * before there is one, the newest checkpoint.
 */
export async function findModel(
  parts: ApiParts,
  tenant: string,
  { model: name, weights }: WantedModel,
): Promise<FoundModel> {
  if (name.includes('/artifacts/')) {
    const { jobId, artifactId } = parseArtifactName(tenant, 'model', name);
    const artifact = await parts.artifacts.find(jobId, artifactId);
    if (artifact === undefined) throw new ServiceError('ARTIFACT_NOT_FOUND', { jobId, artifactId });
    requireReady(artifact);
    if (artifact.format !== 'huggingFace')
      throw new ServiceError('ARTIFACT_FORMAT_WRONG', { artifactId, format: artifact.format.toUpperCase() });
    return fromArtifact(await requireJob(parts.store, jobId), artifact);
  }
  const jobId = parseJobName(tenant, 'model', name);
  const job = await requireJob(parts.store, jobId);
  const isBest = weights === ExportedWeights.BEST;
  const artifact = isBest ? undefined : await parts.artifacts.newest(jobId);
  if (artifact !== undefined) return fromArtifact(job, artifact);
  const kept = await parts.checkpoints.list(jobId);
  const checkpoint = isBest ? kept.find(({ step }) => step === job.progress.best?.step) : kept[0];
  if (checkpoint === undefined) throw new ServiceError('MODEL_NOT_READY', { jobId });
  const datasetId = datasetIdOf(tenant, job.spec.dataset)!;
  return {
    jobId,
    source: { kind: 'checkpoint', folder: checkpoint.folder },
    datasetFolder: parts.datasets.preparedFolder(datasetId),
    folders: [`jobs/${jobId}/checkpoints/${basename(checkpoint.folder)}`, `datasets/${datasetId}/prepared`],
    sequenceLength: job.spec.batch.sequenceLength,
    step: checkpoint.step,
  };
}

function fromArtifact({ spec }: Job, { jobId, id, folder, step }: Artifact): FoundModel {
  return {
    jobId,
    source: { kind: 'artifact', folder },
    datasetFolder: null,
    folders: [`jobs/${jobId}/artifacts/${id}`],
    sequenceLength: spec.batch.sequenceLength,
    step,
  };
}

/** Whether a running job has deleted the checkpoint that was found, after writing newer ones. */
export async function wasPruned(
  { checkpoints }: ApiParts,
  tenant: string,
  jobName: string,
  { kind, folder }: ModelPlace['source'],
): Promise<boolean> {
  if (kind !== 'checkpoint') return false;
  const left = await checkpoints.list(parseJobName(tenant, 'model', jobName));
  return left.every((checkpoint) => checkpoint.folder !== folder);
}
