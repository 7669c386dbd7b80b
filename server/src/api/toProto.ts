import * as plan from '@relora/engine/plan';
import type { AdapterSettings, LlamaConfig, RunSpec } from '@relora/engine/plan';
import * as contract from '@relora/sdk/contract';
import type { Artifact } from '../artifacts/artifact.js';
import type { EndTokens } from '@relora/engine/plan';
import type {
  Dataset,
  DatasetFormat,
  StoredDatasetSpec,
  DatasetSummary,
  PreparedDataset,
} from '../datasets/dataset.js';
import type { Explanation } from '../jobs/explainJob.js';
import type { Execution, Job, JobEvent, JobEventBody, JobFailure, JobImport } from '../jobs/job.js';
import type { RestartEntry } from '../jobs/jobJournal.js';
import type { KeptEvaluation } from '../jobs/modelEvaluations.js';
import type { Weights } from '../weights/weights.js';
import { enums } from './enums.js';
import { toMessage, type Whole } from './settings.js';
import { nameOf } from '../store/tenantIds.js';

/** The version of a job as a quoted entity tag. */
export function toEtag(version: number): string {
  return `"${version}"`;
}

export function toJob(job: Job): contract.Job {
  return {
    name: `jobs/${nameOf(job.id)}`,
    displayName: job.displayName,
    spec: toSpec(job.spec),
    labels: job.labels,
    state: enums.JobState.to[job.state],
    stateReason: job.stateReason,
    failure: job.failure === null ? undefined : toFailure(job.failure),
    progress: {
      step: job.progress.step,
      stepCount: job.progress.stepCount,
      phase:
        job.progress.phase === null ? contract.JobPhase.UNSPECIFIED : enums.JobPhase.to[job.progress.phase],
      restartCount: job.progress.restartCount,
      trainedTokens: job.progress.trainedTokens,
      loss: job.progress.loss ?? undefined,
      evaluationLoss: job.progress.evaluationLoss ?? undefined,
      tokensPerSecond: job.progress.tokensPerSecond ?? undefined,
      remainingSeconds: job.progress.remainingSeconds ?? undefined,
      checkpointStep: job.progress.checkpointStep ?? undefined,
      datasets: job.progress.datasets ?? [],
      evaluations: Object.values(job.progress.evaluations ?? {}).map(toNamedEvaluation),
      bestStep: job.progress.best?.step,
      bestEvaluationLoss: job.progress.best?.loss,
      stopReason: toStopReason(job.progress.stop?.reason),
    },
    attempt: job.attempt,
    lastSequence: job.lastSequence,
    queuePosition: job.queuePosition,
    etag: toEtag(job.version),
    createTime: new Date(job.createTimeMs),
    updateTime: new Date(job.updateTimeMs),
    startTime: toDate(job.startTimeMs),
    endTime: toDate(job.endTimeMs),
    execution: job.execution === null ? undefined : toExecution(job.execution),
    origin:
      job.origin === null ? undefined : { job: `jobs/${nameOf(job.origin.jobId)}`, step: job.origin.step },
    imported: job.imported === null ? undefined : toImport(job.imported),
    deleteTime: toDate(job.deleteTimeMs),
    purgeTime: toDate(job.purgeTimeMs),
    // Only the answers of some methods have these.
    updates: [],
    evaluations: [],
  };
}

function toImport({ job, storeId, serverVersion, timeMs, origin }: JobImport): contract.JobImport {
  return { job, storeId, serverVersion, time: new Date(timeMs), origin: origin ?? undefined };
}

function toStopReason(reason: plan.StopReason | undefined): contract.StopReason {
  return reason === undefined ? contract.StopReason.UNSPECIFIED : enums.StopReason.to[reason];
}

export function toExplanation({
  reason,
  notBeforeMs,
  estimatedStartMs,
  ...rest
}: Explanation): contract.ExplainJobResponse {
  return {
    ...rest,
    reason: enums.WaitReason.to[reason],
    notBeforeTime: toDate(notBeforeMs),
    estimatedStartTime: toDate(estimatedStartMs),
    documents: undefined, // set only if a step is asked for
    places: [],
  };
}

export function toDocuments({ worst, ...body }: plan.DocumentsReport): contract.DocumentsEvent {
  return { ...body, worst };
}

function toFailure({ reason, message, lastLines = [] }: JobFailure): contract.JobFailure {
  return { reason, message, lastLines };
}

function toExecution(execution: Execution): contract.Execution {
  return {
    ...execution,
    precision: enums.Precision.to[execution.precision],
    basePrecision: enums.Precision.to[baseWords[execution.basePrecision]],
    graphs: execution.graphs.map(toGraph),
    baseWeightsSha256: execution.baseWeightsSha256 ?? '',
    datasets: execution.datasets ?? [],
    synchronization: enums.Synchronization.to[execution.synchronization ?? 'everyStep'],
    reductionType: enums.ReductionType.to[execution.reductionType ?? 'float32'],
  };
}

function toGraph({ module, graph }: Execution['graphs'][number]): contract.ExecutionGraph {
  return { module: enums.TargetModule.to[module], graph: enums.AdapterGraph.to[graph] };
}

/** A specification with every default in it. Sent back unchanged, it makes the same run. */
export function toSpec(spec: RunSpec): Whole<contract.JobSpec> {
  return {
    ...toMessage(plan.runSettings, spec),
    model:
      spec.baseWeightsFolder === null
        ? { config: toModelConfig(spec.model) }
        : { baseWeights: toBaseWeights(spec.baseWeightsFolder, spec.baseWeightsName) },
    dataset: spec.dataset,
    mixture: spec.mixture,
    warmStart: spec.kind === 'fullRank' ? undefined : toMessage(plan.warmStartSettings, spec.warmStart),
    adapter: spec.adapter === null ? undefined : toAdapter(spec.adapter, spec.stepCount),
    stepCount: spec.stepCount,
    tokenCount: undefined, // another way to give step_count
    omittedSteps: spec.omittedSteps,
    skippedSteps: spec.omittedSteps, // for clients of 0.1.0
    omittedDocuments: spec.omittedDocuments,
    acceptedDevices: spec.acceptedDevices,
    streams: toMessage(plan.streamSettings, spec.streams),
    recipe: spec.recipe,
    learningRate: toMessage(plan.learningRateSettings, spec.learningRate),
    optimizer: toMessage(plan.optimizerSettings, spec.optimizer),
    batch: toMessage(plan.batchSettings, spec.batch),
    evaluation: toMessage(plan.evaluationSettings, spec.evaluation),
    evaluations: spec.evaluations.map(({ name, dataset, questions, ...settings }) => ({
      ...{ name, dataset, questions },
      ...toMessage(plan.namedEvaluationSettings, settings),
    })),
    checkpoint: toMessage(plan.checkpointSettings, spec.checkpoint),
    stop: toMessage(plan.stopSettings, spec.stop),
    sample: toMessage(plan.sampleSettings, spec.sample),
    export: {
      ...toMessage(plan.exportSettings, spec.export),
      formats: spec.export.formats.map((format) => enums.ExportFormat.to[format]),
      ggufWeightType: enums.WeightType.to[spec.export.ggufType],
    },
  };
}

function toAdapter(adapter: AdapterSettings, stepCount: number): Whole<contract.AdapterSpec> {
  return {
    ...toMessage(plan.adapterSettings, adapter),
    allowShortLastCycle: plan.missingSteps(stepCount, adapter) > 0,
    targetModules: adapter.targetModules.map((module) => enums.TargetModule.to[module]),
    moduleRanks: adapter.targetModules.flatMap((module) => {
      const rank = adapter.moduleRanks[module];
      return rank === undefined ? [] : [{ module: enums.TargetModule.to[module], rank }];
    }),
  };
}

function toBaseWeights(folder: string, name: string | null): contract.BaseWeights {
  if (name === null) return { path: folder, weights: '', artifact: '' };
  return name.startsWith('weights/')
    ? { path: '', weights: name, artifact: '' }
    : { path: '', weights: '', artifact: name };
}

export function toModelConfig(config: LlamaConfig): Whole<contract.LlamaConfig> {
  const { ropeScaling } = config;
  const shape = toMessage(plan.modelSettings, config);
  if (ropeScaling === null) return { ...shape, ropeScaling: undefined };
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositionEmbeddings } = ropeScaling;
  return {
    ...shape,
    ropeScaling: {
      factor,
      lowFreqFactor: lowFrequencyFactor,
      highFreqFactor: highFrequencyFactor,
      originalMaxPositionEmbeddings,
    },
  };
}

export function toEvent(jobId: string, event: JobEvent): contract.JobEvent {
  return { ...toHeader(event), ...toBody(jobId, event.body) };
}

/** The fields of an event other than what happened. */
export function toHeader({ sequence, firstSequence, timeMs, final, attempt }: JobEvent): contract.JobEvent {
  return { sequence, firstSequence, time: new Date(timeMs), final, attempt };
}

/** Says that nothing is new: it repeats the newest sequence number instead of taking a new one. */
export function toHeartbeat(sequence: number): contract.JobEvent {
  return {
    sequence,
    firstSequence: sequence,
    time: new Date(),
    final: false,
    attempt: 0,
    heartbeat: {},
  };
}

function toBody(jobId: string, body: JobEventBody): Partial<contract.JobEvent> {
  switch (body.kind) {
    case 'state':
      return {
        state: {
          from: body.from === null ? contract.JobState.UNSPECIFIED : enums.JobState.to[body.from],
          to: enums.JobState.to[body.to],
          reason: body.reason,
          failure: body.failure === null ? undefined : toFailure(body.failure),
          stopReason: toStopReason(body.stopReason),
        },
      };
    case 'step':
      return {
        step: {
          ...body,
          phase: enums.JobPhase.to[body.phase],
          omitted: body.omitted ?? false,
          span: body.span,
        },
      };
    case 'evaluation':
      return { evaluation: { ...body, datasets: body.datasets ?? [] } };
    case 'namedEvaluation':
      return { namedEvaluation: toNamedEvaluation(body) };
    case 'restart':
      return { restart: toRestartEvent(body) };
    case 'plan':
      return {
        plan: {
          ...body,
          graphs: body.graphs.map(toGraph),
          plannedSeconds: body.plannedSeconds ?? undefined,
          separateSeconds: body.separateSeconds ?? undefined,
          recomputation: enums.Recomputation.to[body.recomputation],
          precision: enums.Precision.to[body.precision],
          basePrecision: enums.Precision.to[baseWords[body.basePrecision]],
        },
      };
    case 'update':
      return { update: body };
    case 'checkpoint':
      return { checkpoint: { ...body, best: body.best } };
    case 'artifact':
      return {
        artifact: {
          artifact: `jobs/${nameOf(jobId)}/artifacts/${body.artifactId}`,
          sizeBytes: body.sizeBytes,
        },
      };
    case 'documents':
      return { documents: toDocuments(body) };
    case 'stop':
      return { stop: { ...body, reason: enums.StopReason.to[body.reason] } };
    case 'sample':
      return { sample: body };
    case 'warning':
      return { warning: body };
  }
}

export function toNamedEvaluation(body: plan.NamedEvaluation): contract.NamedEvaluation {
  const { name, step, dataset, choices, seconds } = body;
  return { name, step, dataset, choices, seconds };
}

export function toKeptEvaluation(kept: KeptEvaluation): contract.KeptEvaluation {
  const { timeMs, datasets, choices, ...rest } = kept;
  return {
    ...rest,
    time: new Date(timeMs),
    datasets: datasets.map((entry) => ({ ...entry, epochs: 0 })),
    choices: choices ?? undefined,
  };
}

export function toRestart({ body, timeMs, attempt, sequence }: RestartEntry): contract.Restart {
  return { event: toRestartEvent(body), time: new Date(timeMs), attempt, sequence };
}

function toRestartEvent(body: RestartEntry['body']): Whole<contract.RestartEvent> {
  const modules = body.modules.map((figures) => ({
    ...figures,
    module: enums.TargetModule.to[figures.module],
  }));
  return { ...body, modules };
}

/** The format of a base, by the names of a job's precision. */
const baseWords = {
  float32: 'float32',
  bfloat16: 'bfloat16',
  int8: 'int8Base',
  nf4: 'nf4Base',
  fp8: 'fp8Base',
} as const;

export function toArtifact(artifact: Artifact): contract.Artifact {
  return {
    name: `jobs/${nameOf(artifact.jobId)}/artifacts/${artifact.id}`,
    kind: enums.ArtifactKind.to[artifact.kind],
    state: enums.ArtifactState.to[artifact.state],
    format: enums.ExportFormat.to[artifact.format],
    weightType: enums.WeightType.to[artifact.weightType],
    castErrorMax: artifact.castErrorMax,
    difference: artifact.difference ?? undefined,
    cycle: artifact.cycle ?? 0,
    failure: artifact.failure === null ? undefined : toFailure(artifact.failure),
    files: artifact.files,
    sizeBytes: artifact.sizeBytes,
    step: artifact.step,
    createTime: new Date(artifact.createTimeMs),
  };
}

export function toDataset(dataset: Dataset): contract.Dataset {
  const { prepared, files } = dataset;
  const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  return {
    ...toDatasetSummary({ ...dataset, fileCount: files.length, sizeBytes }),
    files: files.map((file, index) => ({
      fileName: file.fileName,
      serverPath: file.serverPath ?? '',
      format: formatOf(prepared?.formats?.[index] ?? file.format),
      split: file.split === null ? contract.DatasetSplit.UNSPECIFIED : enums.DatasetSplit.to[file.split],
      sizeBytes: file.sizeBytes,
      sha256: file.sha256 ?? '',
      receivedBytes: file.receivedBytes,
    })),
    spec: toDatasetSpec(dataset.spec),
    base: dataset.spec.base ?? '',
  };
}

/** A data set in a list: without the fields that may be long. */
export function toDatasetSummary(dataset: DatasetSummary): contract.Dataset {
  const { prepared, preparedRatioPerSecond: speed } = dataset;
  return {
    name: `datasets/${nameOf(dataset.id)}`,
    displayName: dataset.displayName,
    base: '', // only in answers about a single data set
    labels: dataset.labels,
    owner: dataset.owner,
    state: enums.DatasetState.to[dataset.state],
    failure: dataset.failure === null ? undefined : toFailure(dataset.failure),
    files: [],
    fileCount: dataset.fileCount,
    sizeBytes: dataset.sizeBytes,
    tokenizer:
      prepared === null
        ? undefined
        : { ...prepared.tokenizer, kind: tokenizerKinds[prepared.tokenizer.kind] },
    train: prepared === null ? undefined : toSplitInfo(prepared.train),
    heldOut: prepared === null ? undefined : toSplitInfo(prepared.heldOut),
    preparedRatio: dataset.preparedRatio,
    preparedBytesPerSecond: speed && speed * dataset.sizeBytes,
    preparationRemainingSeconds: speed && (1 - dataset.preparedRatio) / speed,
    manifestSha256: prepared?.manifestSha256 ?? '',
    createTime: new Date(dataset.createTimeMs),
    spec: undefined,
    skippedRows: prepared?.skippedRows,
    warnings: prepared?.warnings ?? [],
    deleteTime: toDate(dataset.deleteTimeMs),
    purgeTime: toDate(dataset.purgeTimeMs),
  };
}

/** Unset until it is recognized from the content. */
function formatOf(format: DatasetFormat): contract.DatasetFormat {
  return format === 'auto' ? contract.DatasetFormat.UNSPECIFIED : enums.DatasetFormat.to[format];
}

function toSplitInfo(size: PreparedDataset['train']): contract.DatasetSplitInfo {
  const { tokenCount, documentCount, textBytes } = size;
  const { duplicateDocumentCount = 0, trainedTokenCount = tokenCount } = size;
  return { tokenCount, documentCount, textBytes, duplicateDocumentCount, trainedTokenCount };
}

function toDatasetSpec(spec: StoredDatasetSpec): contract.DatasetSpec {
  const { heldOutShare, textField, pairFields, chat, seed, skipInvalid } = spec;
  const skipInvalidCount = skipInvalid && 'count' in skipInvalid ? skipInvalid.count : undefined;
  const skipInvalidShare = skipInvalid && 'share' in skipInvalid ? skipInvalid.share : undefined;
  const shared = { tokenizer: toTokenizer(spec), heldOutShare, seed, skipInvalidCount, skipInvalidShare };
  if (chat !== undefined) return { ...shared, messagesField: chat.field, chatTemplate: chat.template };
  return pairFields === undefined
    ? { ...shared, textField }
    : { ...shared, promptField: pairFields.prompt, completionField: pairFields.completion };
}

export function toWeights(weights: Weights): contract.Weights {
  const { report } = weights;
  return {
    name: `weights/${nameOf(weights.id)}`,
    displayName: weights.displayName,
    labels: weights.labels,
    owner: weights.owner,
    state: enums.WeightsState.to[weights.state],
    files: weights.files,
    fileCount: weights.files.length,
    sizeBytes: weights.files.reduce((sum, file) => sum + file.sizeBytes, 0),
    config: report === null ? undefined : toModelConfig(report.config),
    parameterCount: report?.parameterCount ?? 0,
    tokenizerVocabularySize: report?.tokenizerVocabularySize ?? 0,
    createTime: new Date(weights.createTimeMs),
    warnings: report?.warnings ?? [],
  };
}

const tokenizerKinds = { bytes: 'bytes', trainedBpe: 'trained_bpe', huggingFace: 'hugging_face' } as const;

function askedEndToken({ endTokens }: { endTokens?: EndTokens }): string {
  return endTokens?.isAsked === true ? (endTokens.name ?? '') : '';
}

function toTokenizer({ tokenizer }: StoredDatasetSpec): contract.TokenizerSpec {
  switch (tokenizer.kind) {
    case 'bytes':
      return { bytes: {} };
    case 'trainedBpe':
      return { trainedBpe: { vocabularySize: tokenizer.vocabularySize } };
    case 'huggingFace':
      // The content may be megabytes, so a listed data set identifies its tokenizer by SHA-256.
      return {
        huggingFace: {
          ...{ tokenizerJson: '', serverPath: '', weights: '', tokenizerConfigJson: '' },
          endToken: askedEndToken(tokenizer),
        },
      };
  }
}

export function toDate(timeMs: number | null): Date | undefined {
  return timeMs === null ? undefined : new Date(timeMs);
}
