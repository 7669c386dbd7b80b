import type { Logger } from 'pino';
import type { ArtifactExports } from '../artifacts/artifactExports.js';
import type { ArtifactStore } from '../artifacts/artifactStore.js';
import type { AuditLog } from '../audit/auditLog.js';
import type { Config } from '../config.js';
import type { AllowedFolders } from '../datasets/allowedFolders.js';
import type { DatasetDeletion } from '../datasets/datasetDeletion.js';
import type { DatasetStore } from '../datasets/datasetStore.js';
import type { DatasetUploads } from '../datasets/datasetUploads.js';
import type { CheckpointStore } from '../jobs/checkpointStore.js';
import type { JobDeletion } from '../jobs/jobDeletion.js';
import type { JobExplainer } from '../jobs/explainJob.js';
import type { JobControl } from '../jobs/jobControl.js';
import type { JobJournal } from '../jobs/jobJournal.js';
import type { JobQueue } from '../jobs/jobQueue.js';
import type { JobStore } from '../jobs/jobStore.js';
import type { DiskReader } from '../retention/diskUse.js';
import type { Quotas } from '../quotas/quotas.js';
import type { UsageStore } from '../usage/usageStore.js';
import type { Scrubber } from '../scrub/scrubber.js';
import type { Metrics } from '../metrics/metrics.js';
import type { Confinement } from '../trainer/confinement.js';
import type { Slots } from '../trainer/slots.js';
import type { Stage } from '../store/stage.js';
import type { StoreIdentity } from '../store/storeIdentity.js';
import type { TaskRunner } from '../trainer/taskRunner.js';
import type { WeightsStore } from '../weights/weightsStore.js';
import type { WeightsUploads } from '../weights/weightsUploads.js';
import type { WebhookSender } from '../webhooks/webhookSender.js';
import type { WebhookStore } from '../webhooks/webhookStore.js';
import type { Reachable } from '../webhooks/reachable.js';
import type { DeviceCatalog } from './deviceCatalog.js';
import type { PageTokens } from './pageToken.js';
import type { Places } from './places.js';

/** All that the services of the API stand on. Each takes what it needs of it; server.ts makes it once. */
export interface ApiParts {
  config: Config;
  log: Logger;
  store: JobStore;
  queue: JobQueue;
  control: JobControl;
  explainer: JobExplainer;
  journal: JobJournal;
  checkpoints: CheckpointStore;
  artifacts: ArtifactStore;
  exports: ArtifactExports;
  jobDeletion: JobDeletion;
  datasetDeletion: DatasetDeletion;
  disk: DiskReader;
  scrubber: Scrubber;
  datasets: DatasetStore;
  uploads: DatasetUploads;
  weights: WeightsStore;
  weightsUploads: WeightsUploads;
  webhooks: WebhookStore;
  webhookSender: WebhookSender;
  reachable: Reachable;
  allowedFolders: AllowedFolders;
  stage: Stage;
  tasks: TaskRunner;
  audit: AuditLog;
  quotas: Quotas;
  usage: UsageStore;
  metrics: Metrics;
  pageTokens: PageTokens;
  identity: StoreIdentity;
  /** Uploads and downloads that may be open at once. */
  downloadPlaces: Places;
  uploadPlaces: Places;
  /** What jobs can run on. */
  devices: DeviceCatalog;
  slots: Slots;
  confinement: Confinement;
  version: string;
  startTimeMs: number;
  /** Aborted when the server begins to stop: watches and uploads then end, calls under way are answered. */
  stopping: AbortSignal;
}
