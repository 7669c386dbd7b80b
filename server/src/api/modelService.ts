import { basename } from 'node:path';
import {
  ExportedWeights,
  FinishReason,
  type GenerateTextRequest,
  type ModelServiceDefinition,
} from '@relora/sdk/contract';
import type { Artifact } from '../artifacts/artifact.js';
import { quote, ServiceError } from '../errors.js';
import type { Implementation } from '../grpc/service.js';
import type { GenerateTask } from '../trainer/messages.js';
import { requireReady } from './artifactService.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { datasetIdOf, parseArtifactName, parseJobName } from './resourceNames.js';
import { taskError } from './taskError.js';

const finishReasons = { endOfText: FinishReason.END_OF_TEXT, tokenCount: FinishReason.TOKEN_COUNT } as const;

/** Generates text in a child process, which ends with the call. */
export function modelService(parts: ApiParts): Implementation<typeof ModelServiceDefinition> {
  const { tasks, metrics, stopping } = parts;
  return {
    async *generateText(request, context) {
      const { tenant } = context.caller;
      const settings = parseSettings(request);
      const signal = AbortSignal.any([context.signal, stopping]);
      let tokenCount = 0;
      for (let isDone = false; !isDone;) {
        const { folders, ...model } = await findModel(parts, tenant, request);
        const taken: (() => void)[] = [];
        try {
          for (const folder of folders) taken.push(await parts.stage.take(folder));
          for await (const piece of tasks.generate({ ...settings, ...model }, signal)) {
            metrics.generatedTokens.inc(piece.tokenCount - tokenCount);
            tokenCount = piece.tokenCount;
            yield {
              text: piece.text,
              tokenCount,
              finishReason:
                piece.finishReason === null ? FinishReason.UNSPECIFIED : finishReasons[piece.finishReason],
            };
          }
          isDone = true;
        } catch (error) {
          // A running job may have put newer checkpoints in the place of this one before it was loaded.
          const mayRepeat = tokenCount === 0 && !signal.aborted;
          if (!mayRepeat || !(await wasPruned(parts, tenant, request.model, model.source)))
            throw taskError(error, request.model, context.signal, stopping);
        } finally {
          for (const release of taken) release();
        }
      }
    },
  };
}

function parseSettings(
  request: GenerateTextRequest,
): Pick<GenerateTask, 'prompt' | 'tokenCountMax' | 'temperature' | 'topK' | 'topP' | 'seed'> {
  const checks = new FieldChecks();
  const { temperature = 0.8 } = request;
  if (!(temperature === 0 || (temperature >= 0.01 && temperature <= 10)))
    checks.add('temperature', '0, or a number from 0.01 to 10', temperature);
  const settings = {
    prompt: checks.text('prompt', request.prompt, 1 << 20, { lines: true }),
    tokenCountMax: checks.integer('token_count_max', request.tokenCountMax, 128, 1, 4096),
    temperature,
    topK: checks.integer('top_k', request.topK, 0, 0, 1 << 20),
    topP: checks.number('top_p', request.topP, 0.95, { min: 0, max: 1, above: true }),
    seed: checks.integer('seed', request.seed, 0, 0, 2 ** 31 - 1),
  };
  const weights = checks.word('weights', request.weights, enums.ExportedWeights, 'last' as const);
  if (weights === 'best' && request.model.includes('/artifacts/'))
    checks.add('weights', 'unset for an artifact, which has its weights', 'BEST');
  if (!/^jobs\//.test(request.model))
    checks.add('model', 'jobs/{job} or jobs/{job}/artifacts/{artifact}', quote(request.model));
  checks.throwIfWrong();
  return settings;
}

async function wasPruned(
  { checkpoints }: ApiParts,
  tenant: string,
  jobName: string,
  { kind, folder }: GenerateTask['source'],
): Promise<boolean> {
  if (kind !== 'checkpoint') return false;
  const left = await checkpoints.list(parseJobName(tenant, 'model', jobName));
  return left.every((checkpoint) => checkpoint.folder !== folder);
}

interface FoundModel extends Pick<GenerateTask, 'source' | 'datasetFolder'> {
  /** Those of the data folder that it lies in. */
  folders: string[];
}

/** The named artifact; for a job the checkpoint of its lowest held-out loss where that is asked for, else its newest artifact or, before there is one, its newest checkpoint. */
async function findModel(
  parts: ApiParts,
  tenant: string,
  { model: name, weights }: GenerateTextRequest,
): Promise<FoundModel> {
  if (name.includes('/artifacts/')) {
    const { jobId, artifactId } = parseArtifactName(tenant, 'model', name);
    const artifact = await parts.artifacts.find(jobId, artifactId);
    if (artifact === undefined) throw new ServiceError('ARTIFACT_NOT_FOUND', { jobId, artifactId });
    requireReady(artifact);
    if (artifact.format !== 'huggingFace')
      throw new ServiceError('ARTIFACT_FORMAT_WRONG', { artifactId, format: artifact.format.toUpperCase() });
    return fromArtifact(artifact);
  }
  const jobId = parseJobName(tenant, 'model', name);
  const job = await requireJob(parts.store, jobId);
  const isBest = weights === ExportedWeights.BEST;
  const artifact = isBest ? undefined : await parts.artifacts.newest(jobId);
  if (artifact !== undefined) return fromArtifact(artifact);
  const kept = await parts.checkpoints.list(jobId);
  const checkpoint = isBest ? kept.find(({ step }) => step === job.progress.best?.step) : kept[0];
  if (checkpoint === undefined) throw new ServiceError('MODEL_NOT_READY', { jobId });
  const datasetId = datasetIdOf(tenant, job.spec.dataset)!;
  return {
    source: { kind: 'checkpoint', folder: checkpoint.folder },
    datasetFolder: parts.datasets.preparedFolder(datasetId),
    folders: [`jobs/${jobId}/checkpoints/${basename(checkpoint.folder)}`, `datasets/${datasetId}/prepared`],
  };
}

function fromArtifact({ jobId, id, folder }: Artifact): FoundModel {
  return {
    source: { kind: 'artifact', folder },
    datasetFolder: null,
    folders: [`jobs/${jobId}/artifacts/${id}`],
  };
}
