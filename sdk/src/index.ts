export * from './client.js';
export * from './errors.js';
export { isTerminal } from './jobState.js';
export { parseJobSpec } from './specJson.js';
export type { JobEvent } from './events.js';
export type { WatchOptions } from './watch.js';
export type { DownloadOptions } from './download.js';
export type { UploadFile, UploadOptions, UploadProgress } from './upload.js';
export type { RetryOptions } from './calls.js';
export {
  AdapterGraph,
  ArtifactKind,
  DatasetFormat,
  DatasetSplit,
  DatasetState,
  FinishReason,
  JobKind,
  JobPhase,
  JobState,
  MomentReset,
  MomentType,
  Precision,
  Recomputation,
  ScheduleKind,
  TargetModule,
  WeightType,
} from './contract.js';
export type {
  Artifact,
  ArtifactFile,
  Dataset,
  DatasetSpec,
  Device,
  EstimateJobResponse,
  GenerateTextResponse,
  GetServerInfoResponse,
  Job,
  JobEstimate,
  JobFailure,
  JobPlan,
  JobProgress,
  LlamaConfig,
  PreviewToken,
  TokenizerSpec,
  Weights,
} from './contract.js';
