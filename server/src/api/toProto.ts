import { missingSteps, type RunSpec } from '@relora/engine/plan';
import * as contract from '@relora/sdk/contract';
import type { Artifact } from '../artifacts/artifactStore.js';
import type { Dataset, DatasetSpec } from '../datasets/dataset.js';
import type { Job, JobEvent, JobEventBody } from '../jobs/job.js';
import { toEnum } from './enums.js';

/** The version of a job as a quoted entity tag. */
export function toEtag(version: number): string {
  return `"${version}"`;
}

export function toJob(job: Job): contract.Job {
  return {
    name: `jobs/${job.id}`,
    displayName: job.displayName,
    spec: toSpec(job.spec),
    labels: job.labels,
    state: toEnum.jobState[job.state],
    stateReason: job.stateReason,
    failure: job.failure ?? undefined,
    progress: {
      step: job.progress.step,
      stepCount: job.progress.stepCount,
      phase: job.progress.phase === null ? contract.JobPhase.UNSPECIFIED : toEnum.phase[job.progress.phase],
      restartCount: job.progress.restartCount,
      trainedTokens: job.progress.trainedTokens,
      loss: job.progress.loss ?? undefined,
      evaluationLoss: job.progress.evaluationLoss ?? undefined,
      tokensPerSecond: job.progress.tokensPerSecond ?? undefined,
      remainingSeconds: job.progress.remainingSeconds ?? undefined,
      checkpointStep: job.progress.checkpointStep ?? undefined,
    },
    attempt: job.attempt,
    lastSequence: job.lastSequence,
    queuePosition: job.queuePosition,
    etag: toEtag(job.version),
    createTime: new Date(job.createTimeMs),
    updateTime: new Date(job.updateTimeMs),
    startTime: toDate(job.startTimeMs),
    endTime: toDate(job.endTimeMs),
    execution:
      job.execution === null
        ? undefined
        : { ...job.execution, precision: toEnum.precision[job.execution.precision] },
    origin: job.origin === null ? undefined : { job: `jobs/${job.origin.jobId}`, step: job.origin.step },
  };
}

/** A specification with every default in it. Sent back as it is, it makes the same run. */
export function toSpec(spec: RunSpec): contract.JobSpec {
  const { adapter } = spec;
  return {
    kind: toEnum.jobKind[spec.kind],
    model:
      spec.baseWeightsFolder === null
        ? { config: spec.model }
        : { baseWeights: { path: spec.baseWeightsFolder } },
    dataset: spec.dataset,
    warmStart: spec.kind === 'fullRank' ? undefined : spec.warmStart,
    adapter:
      adapter === null
        ? undefined
        : {
            ...adapter,
            momentReset: toEnum.momentReset[adapter.momentReset],
            graph: toEnum.adapterGraph[adapter.graph],
            allowShortLastCycle: missingSteps(spec.stepCount, adapter) > 0,
            targetModules: adapter.targetModules.map((module) => toEnum.targetModule[module]),
            initialisation: toEnum.initialisation[adapter.initialisation],
            trainedFactors: toEnum.trainedFactors[adapter.trainedFactors],
            scaling: toEnum.scaling[adapter.scaling],
            moduleRanks: adapter.targetModules.flatMap((module) => {
              const rank = adapter.moduleRanks[module];
              return rank === undefined ? [] : [{ module: toEnum.targetModule[module], rank }];
            }),
          },
    stepCount: spec.stepCount,
    learningRate: { ...spec.learningRate, schedule: toEnum.scheduleKind[spec.learningRate.schedule] },
    optimizer: { ...spec.optimizer, momentType: toEnum.momentType[spec.optimizer.momentType] },
    batch: spec.batch,
    precision: toEnum.precision[spec.precision],
    recomputation: toEnum.recomputation[spec.recomputation],
    seed: spec.seed,
    evaluation: spec.evaluation,
    checkpoint: spec.checkpoint,
    sample: spec.sample,
    export: { weightType: toEnum.weightType[spec.export.weightType] },
    priority: spec.priority,
    device: spec.device,
  };
}

export function toEvent(jobId: string, event: JobEvent): contract.JobEvent {
  const { sequence, timeMs, final, attempt, body } = event;
  return { sequence, time: new Date(timeMs), final, attempt, ...toBody(jobId, body) };
}

/** Says that nothing is new: it repeats the newest sequence instead of taking one. */
export function toHeartbeat(sequence: number): contract.JobEvent {
  return { sequence, time: new Date(), final: false, attempt: 0, heartbeat: {} };
}

function toBody(jobId: string, body: JobEventBody): Partial<contract.JobEvent> {
  switch (body.kind) {
    case 'state':
      return {
        state: {
          from: body.from === null ? contract.JobState.UNSPECIFIED : toEnum.jobState[body.from],
          to: toEnum.jobState[body.to],
          reason: body.reason,
          failure: body.failure ?? undefined,
        },
      };
    case 'step':
      return { step: { ...body, phase: toEnum.phase[body.phase] } };
    case 'evaluation':
      return { evaluation: body };
    case 'restart':
      return { restart: body };
    case 'plan':
      return {
        plan: {
          ...body,
          graphs: body.graphs.map(({ module, graph }) => ({
            module: toEnum.targetModule[module],
            graph: toEnum.adapterGraph[graph],
          })),
          plannedSeconds: body.plannedSeconds ?? undefined,
          separateSeconds: body.separateSeconds ?? undefined,
          recomputation: toEnum.recomputation[body.recomputation],
          precision: toEnum.precision[body.precision],
          basePrecision: toEnum.precision[baseWords[body.basePrecision]],
        },
      };
    case 'checkpoint':
      return { checkpoint: body };
    case 'artifact':
      return {
        artifact: { artifact: `jobs/${jobId}/artifacts/${body.artifactId}`, sizeBytes: body.sizeBytes },
      };
    case 'sample':
      return { sample: body };
    case 'warning':
      return { warning: body };
  }
}

/** What a base is kept in, in the words of a job's precision. */
const baseWords = { float32: 'float32', bfloat16: 'bfloat16', int8: 'int8Base', nf4: 'nf4Base' } as const;

export function toArtifact(artifact: Artifact): contract.Artifact {
  return {
    name: `jobs/${artifact.jobId}/artifacts/${artifact.id}`,
    kind: contract.ArtifactKind.MERGED_MODEL,
    files: artifact.files,
    sizeBytes: artifact.sizeBytes,
    step: artifact.step,
    createTime: new Date(artifact.createTimeMs),
  };
}

export function toDataset(dataset: Dataset): contract.Dataset {
  const { prepared } = dataset;
  return {
    name: `datasets/${dataset.id}`,
    displayName: dataset.displayName,
    state: toEnum.datasetState[dataset.state],
    failure: dataset.failure ?? undefined,
    files: dataset.files.map((file) => ({
      fileName: file.fileName,
      serverPath: file.serverPath ?? '',
      format: toEnum.datasetFormat[file.format],
      split: file.split === null ? contract.DatasetSplit.UNSPECIFIED : toEnum.datasetSplit[file.split],
      sizeBytes: file.sizeBytes,
      sha256: file.sha256 ?? '',
      receivedBytes: file.receivedBytes,
    })),
    tokenizer:
      prepared === null
        ? undefined
        : { ...prepared.tokenizer, kind: tokenizerKinds[prepared.tokenizer.kind] },
    train: prepared?.train,
    heldOut: prepared?.heldOut,
    preparedRatio: dataset.preparedRatio,
    manifestSha256: prepared?.manifestSha256 ?? '',
    createTime: new Date(dataset.createTimeMs),
    spec: { ...dataset.spec, tokenizer: toTokenizer(dataset.spec) },
  };
}

const tokenizerKinds = { bytes: 'bytes', trainedBpe: 'trained_bpe', huggingFace: 'hugging_face' } as const;

function toTokenizer({ tokenizer }: DatasetSpec): contract.TokenizerSpec {
  switch (tokenizer.kind) {
    case 'bytes':
      return { bytes: {} };
    case 'trainedBpe':
      return { trainedBpe: { vocabularySize: tokenizer.vocabularySize } };
    case 'huggingFace':
      // The content may be megabytes: a data set that is listed shows which one it is by its SHA-256.
      return { huggingFace: { tokenizerJson: '', serverPath: '' } };
  }
}

function toDate(timeMs: number | null): Date | undefined {
  return timeMs === null ? undefined : new Date(timeMs);
}
