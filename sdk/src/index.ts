export * from './client.js';
export * from './errors.js';
export { isTerminal } from './jobState.js';
export { parseJobSpec } from './specJson.js';
export { bundleToJson, createBundle, parseBundle, type Bundle } from './bundle.js';
export {
  compareServer,
  replayBundle,
  type FactDifference,
  type ReplayOptions,
  type ReplayReport,
} from './replay.js';
export type { ExportedJobFile, ExportJobOptions, ImportJobOptions, JobFiles } from './jobArchive.js';
export type { JobEvent } from './events.js';
export { spanOf, type WholeSpan } from './stepSpan.js';
export type { ComparisonOptions } from './comparison.js';
export { bestOf, ratesOf, sweepJobsMax } from './sweep.js';
export type { RateGrid, Sweep, SweepOptions, SweepRun, SweepVariant } from './sweep.js';
export type { WatchOptions } from './watch.js';
export type { JobsEvent, WatchJobsOptions } from './watchJobs.js';
export type { DownloadOptions } from './download.js';
export type { UploadFile, UploadOptions, UploadProgress } from './upload.js';
export type { CallOptions } from './callOptions.js';
export type { CredentialOptions, Token } from './credentials.js';
export type { StreamLimits, TlsOptions } from './connections.js';
export type { Logger } from './logger.js';
export type { RetryOptions } from './patience.js';
export {
  AdapterGraph,
  AdapterOptimizer,
  AdapterScaling,
  FullRankOptimizer,
  ArtifactKind,
  ArtifactState,
  DatasetFormat,
  DatasetSplit,
  DatasetState,
  ExportedWeights,
  ExportFormat,
  FinishReason,
  Initialisation,
  JobKind,
  JobPhase,
  JobState,
  Metric,
  MomentReset,
  MomentType,
  Precision,
  HeadPrecision,
  ReductionType,
  EndOfData,
  Recomputation,
  ScheduleKind,
  StopReason,
  Synchronization,
  TargetModule,
  TrainedFactors,
  UsageDimension,
  WaitReason,
  WebhookDeliveryState,
  WeightType,
} from './contract.js';
export type {
  Artifact,
  ArtifactFile,
  AuditEntry,
  ComparedJob,
  CompareJobsResponse,
  Dataset,
  DatasetSpec,
  Device,
  EstimateJobResponse,
  EvaluateModelResponse,
  ExplainJobResponse,
  Execution,
  GenerateTextResponse,
  GetMetricHistoryResponse,
  GetDiskUseResponse,
  GetQuotaResponse,
  GetServerInfoResponse,
  Job,
  JobArchive,
  JobEstimate,
  JobFailure,
  JobPlan,
  JobProgress,
  LlamaConfig,
  MetricPoint,
  MetricSeries,
  MixturePart,
  ModuleRank,
  NamedEvaluation,
  PreviewToken,
  QuotaUse,
  Restart,
  RestartEvent,
  SettingDifference,
  StepRange,
  TestWebhookResponse,
  TokenizerSpec,
  UsageRow,
  Webhook,
  WebhookDelivery,
  Weights,
} from './contract.js';
