import type { Logger } from 'pino';
import { DeviceCatalogue } from './api/deviceCatalogue.js';
import { PageTokens } from './api/pageToken.js';
import { streamPlaces } from './api/places.js';
import type { ApiParts } from './api/parts.js';
import { ArtifactExporter } from './trainer/artifactExporter.js';
import { ArtifactExports } from './artifacts/artifactExports.js';
import { ArtifactStore } from './artifacts/artifactStore.js';
import type { Config } from './config.js';
import { AllowedFolders } from './datasets/allowedFolders.js';
import { DatasetPreparer } from './trainer/datasetPreparer.js';
import { DatasetStore } from './datasets/datasetStore.js';
import { DatasetUploads } from './datasets/datasetUploads.js';
import { CheckpointStore } from './jobs/checkpointStore.js';
import { JobAttempts } from './jobs/jobAttempts.js';
import { JobControl } from './jobs/jobControl.js';
import { JobJournal } from './jobs/jobJournal.js';
import { JobQueue } from './jobs/jobQueue.js';
import { JobStore } from './jobs/jobStore.js';
import type { Metrics } from './metrics/metrics.js';
import type { Store } from './store/openStore.js';
import { Supervisor } from './trainer/supervisor.js';
import { TaskRunner } from './trainer/taskRunner.js';
import { version } from './version.js';
import { WeightsStore } from './weights/weightsStore.js';
import { WeightsUploads } from './weights/weightsUploads.js';

export interface ServerParts extends ApiParts {
  supervisor: Supervisor;
  preparer: DatasetPreparer;
  exporter: ArtifactExporter;
}

export interface ServerPartsOptions {
  config: Config;
  log: Logger;
  store: Store;
  metrics: Metrics;
  stopping: AbortSignal;
  onStoreFailure(error: unknown): void;
}

/** Makes the parts of a server over one store; nothing runs yet. */
export function makeServerParts({
  config,
  log,
  store: { db, info, feed },
  metrics,
  stopping,
  onStoreFailure,
}: ServerPartsOptions): ServerParts {
  const { dataFolder } = config;
  const journal = new JobJournal(db, feed);
  const store = new JobStore(db);
  const queue = new JobQueue(journal, { jobsMax: config.queueJobsMax });
  const attempts = new JobAttempts(journal, dataFolder, { eventsMax: config.jobEventsMax });
  const checkpoints = new CheckpointStore(db, dataFolder);
  const artifacts = new ArtifactStore(db, dataFolder);
  const datasets = new DatasetStore(db, dataFolder, feed);
  const weights = new WeightsStore(db, dataFolder);
  const tasks = new TaskRunner(config, log);
  const exports = new ArtifactExports(db, dataFolder, feed);
  const supervisor = new Supervisor({
    config,
    store,
    queue,
    feed,
    attempts,
    checkpoints,
    artifacts,
    datasets,
    log,
    onStoreFailure,
  });
  return {
    config,
    log,
    store,
    queue,
    control: new JobControl(store, journal),
    journal,
    checkpoints,
    artifacts,
    exports,
    datasets,
    uploads: new DatasetUploads(datasets, { freeDiskBytesMin: config.freeDiskBytesMin }),
    weights,
    weightsUploads: new WeightsUploads(weights, { freeDiskBytesMin: config.freeDiskBytesMin }),
    allowedFolders: new AllowedFolders(config.allowedFolders),
    tasks,
    metrics,
    ...streamPlaces(config),
    pageTokens: new PageTokens(info.pageTokenKey),
    devices: new DeviceCatalogue(tasks, log, stopping),
    version,
    startTimeMs: Date.now(),
    stopping,
    supervisor,
    exporter: new ArtifactExporter({
      exports,
      store,
      checkpoints,
      datasets,
      tasks,
      saveCheckpoint: async (jobId) => await supervisor.saveCheckpoint(jobId),
      dataFolder,
      feed,
      log,
      onStoreFailure,
    }),
    preparer: new DatasetPreparer(datasets, tasks, config, feed, log, onStoreFailure),
  };
}
