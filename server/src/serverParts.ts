import type { Logger } from 'pino';
import { DeviceCatalog, machineLoadRatio } from './api/deviceCatalog.js';
import { PageTokens } from './api/pageToken.js';
import { streamPlaces } from './api/places.js';
import type { ApiParts } from './api/parts.js';
import { ArtifactExporter } from './trainer/artifactExporter.js';
import { ArtifactExports } from './artifacts/artifactExports.js';
import { ArtifactStore } from './artifacts/artifactStore.js';
import { AuditLog } from './audit/auditLog.js';
import type { Config } from './config.js';
import { AllowedFolders } from './datasets/allowedFolders.js';
import { DatasetPreparer } from './trainer/datasetPreparer.js';
import { DatasetDeletion } from './datasets/datasetDeletion.js';
import { DatasetStore } from './datasets/datasetStore.js';
import { DatasetUploads } from './datasets/datasetUploads.js';
import { CheckpointStore } from './jobs/checkpointStore.js';
import { HistoryFolding } from './jobs/historyFolding.js';
import { JobAttempts } from './jobs/jobAttempts.js';
import { JobDeletion } from './jobs/jobDeletion.js';
import { JobExplainer } from './jobs/explainJob.js';
import { JobControl } from './jobs/jobControl.js';
import { JobJournal } from './jobs/jobJournal.js';
import { JobQueue } from './jobs/jobQueue.js';
import { JobStore } from './jobs/jobStore.js';
import { CardMetrics } from './metrics/cardMetrics.js';
import type { Metrics } from './metrics/metrics.js';
import { DiskReader } from './retention/diskUse.js';
import { Janitor } from './retention/janitor.js';
import { Scrubber } from './scrub/scrubber.js';
import type { Store } from './store/openStore.js';
import { Slots } from './trainer/slots.js';
import { Supervisor } from './trainer/supervisor.js';
import { TaskRunner } from './trainer/taskRunner.js';
import { ReachedSpeedStore } from './store/reachedSpeedStore.js';
import { version } from './version.js';
import { WeightsStore } from './weights/weightsStore.js';
import { WeightsUploads } from './weights/weightsUploads.js';

export interface ServerParts extends ApiParts {
  supervisor: Supervisor;
  preparer: DatasetPreparer;
  exporter: ArtifactExporter;
  janitor: Janitor;
  folding: HistoryFolding;
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
  store: { db, info, feed, leases, blobs, stage },
  metrics,
  stopping,
  onStoreFailure,
}: ServerPartsOptions): ServerParts {
  const { dataFolder } = config;
  const journal = new JobJournal(db, feed, () => leases.now());
  const store = new JobStore(db);
  const queue = new JobQueue(journal, leases, {
    jobsMax: config.queueJobsMax,
    ownerRunningMax: config.ownerRunningMax,
  });
  const attempts = new JobAttempts(journal, dataFolder);
  const checkpoints = new CheckpointStore(db, dataFolder, stage);
  const artifacts = new ArtifactStore(db, dataFolder, stage);
  const datasets = new DatasetStore(db, dataFolder, feed, leases);
  const weights = new WeightsStore(db, dataFolder, stage);
  const tasks = new TaskRunner(config, log);
  const exports = new ArtifactExports(db, dataFolder, feed, leases, blobs, stage);
  const devices = new DeviceCatalog(
    tasks,
    log,
    stopping,
    {
      loadRatio: machineLoadRatio,
      trainings: () => ({ running: supervisor.runningCount, begun: supervisor.begunCount }),
    },
    new ReachedSpeedStore(db),
  );
  const slots = new Slots(config, devices);
  const supervisor: Supervisor = new Supervisor({
    config,
    store,
    queue,
    feed,
    leases,
    stage,
    attempts,
    checkpoints,
    artifacts,
    datasets,
    slots,
    log,
    onStoreFailure,
  });
  devices.onFound(() => supervisor.fill());
  const cardMetrics = new CardMetrics(metrics, tasks, log, stopping);
  devices.onFound(() => cardMetrics.watch(devices.cards() ?? []));
  const uploads = new DatasetUploads(datasets, stage, { freeDiskBytesMin: config.freeDiskBytesMin });
  const weightsUploads = new WeightsUploads(weights, { freeDiskBytesMin: config.freeDiskBytesMin });
  const undelete = { undeleteMs: config.undeleteSeconds * 1000 };
  const jobDeletion = new JobDeletion(db, journal, undelete);
  const datasetDeletion = new DatasetDeletion(db, feed, undelete);
  const disk = new DiskReader(db, dataFolder);
  return {
    config,
    log,
    store,
    queue,
    control: new JobControl(store, journal),
    explainer: new JobExplainer(db, leases, config),
    journal,
    checkpoints,
    artifacts,
    exports,
    datasets,
    jobDeletion,
    datasetDeletion,
    disk,
    scrubber: new Scrubber(db, stage),
    uploads,
    weights,
    weightsUploads,
    allowedFolders: new AllowedFolders(config.allowedFolders),
    stage,
    tasks,
    audit: new AuditLog(db, log, config.auditFile),
    metrics,
    ...streamPlaces(config),
    pageTokens: new PageTokens(info.pageTokenKey),
    devices,
    slots,
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
      leases,
      stage,
      log,
      onStoreFailure,
    }),
    preparer: new DatasetPreparer(datasets, tasks, config, feed, leases, stage, log, onStoreFailure),
    folding: new HistoryFolding(
      db,
      journal,
      { windowMs: config.stepWindowSeconds * 1000, eventsKept: config.jobEventsMax },
      log,
      onStoreFailure,
    ),
    janitor: new Janitor({
      db,
      config,
      jobs: jobDeletion,
      datasets: datasetDeletion,
      weights,
      checkpoints,
      disk,
      blobs,
      stage,
      isUploading: (name) => {
        const [kind, id = ''] = name.split('/');
        return kind === 'weights' ? weightsUploads.isOpen(id) : uploads.isOpen(id);
      },
      log,
      onDiskUse: (use) => {
        metrics.diskUsed.set({ kind: 'jobs' }, use.jobBytes);
        metrics.diskUsed.set({ kind: 'datasets' }, use.datasetBytes);
        metrics.diskUsed.set({ kind: 'weights' }, use.weightsBytes);
        metrics.diskUsed.set({ kind: 'store' }, use.storeBytes);
        metrics.diskDeleted.set(use.deletedBytes);
      },
      onPurged: (kind) => metrics.purged.inc({ kind }),
      onStoreFailure,
    }),
  };
}
