import { JobSpec } from '@relora/sdk/contract';
import type { Logger } from 'pino';
import { DeviceCatalog, machineLoadRatio } from './api/deviceCatalog.js';
import { eventJson } from './api/eventJson.js';
import { toSpec } from './api/toProto.js';
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
import type { OwnMachine } from './jobs/queueSnapshot.js';
import { JobControl } from './jobs/jobControl.js';
import { JobJournal } from './jobs/jobJournal.js';
import { JobQueue } from './jobs/jobQueue.js';
import { GangPlaces } from './jobs/gangPlaces.js';
import { JournalReaders } from './jobs/journalReaders.js';
import { JobStore } from './jobs/jobStore.js';
import { CardMetrics } from './metrics/cardMetrics.js';
import type { Metrics } from './metrics/metrics.js';
import { DiskReader } from './retention/diskUse.js';
import { Janitor } from './retention/janitor.js';
import type { Quotas } from './quotas/quotas.js';
import { UsageStore } from './usage/usageStore.js';
import { Scrubber } from './scrub/scrubber.js';
import type { Store } from './store/openStore.js';
import { Confinement } from './trainer/confinement.js';
import { trainerEntry } from './trainer/trainerProcess.js';
import type { DeviceDescription } from './jobs/jobDevices.js';
import { UploadParts } from './uploads/uploadParts.js';
import { Slots } from './trainer/slots.js';
import { Supervisor } from './trainer/supervisor.js';
import { TaskRunner } from './trainer/taskRunner.js';
import { ReachedSpeedStore } from './store/reachedSpeedStore.js';
import { Trackers } from './trackers/trackers.js';
import { Reachable } from './webhooks/reachable.js';
import { WebhookSender } from './webhooks/webhookSender.js';
import { WebhookStore } from './webhooks/webhookStore.js';
import { version } from './version.js';
import { WeightsStore } from './weights/weightsStore.js';
import { JobImports } from './archive/jobImports.js';
import { WeightsUploads } from './weights/weightsUploads.js';

export interface ServerParts extends ApiParts {
  supervisor: Supervisor;
  preparer: DatasetPreparer;
  exporter: ArtifactExporter;
  janitor: Janitor;
  folding: HistoryFolding;
  trackers: Trackers;
}

export interface ServerPartsOptions {
  config: Config;
  log: Logger;
  store: Store;
  metrics: Metrics;
  quotas: Quotas;
  stopping: AbortSignal;
  onStoreFailure(error: unknown): void;
}

/** Makes the parts of a server on one store; nothing runs yet. */
export function makeServerParts(options: ServerPartsOptions): ServerParts {
  const { config, log, metrics, stopping } = options;
  const records = makeRecords(options);
  const confinement = new Confinement(config);
  const tasks = new TaskRunner(config, log, trainerEntry, confinement);
  const devices = makeDevices(options, tasks, () => ({
    running: supervisor.runningCount,
    begun: supervisor.begunCount,
  }));
  const slots = new Slots(config, devices);
  const { supervisor, ...work } = makeWork(options, records, tasks, slots, confinement);
  devices.onFound(() => supervisor.fill());
  options.quotas.onChange(() => supervisor.fill());
  return {
    ...makeFollowers(options, records),
    config,
    log,
    metrics,
    ...records,
    ...streamPlaces(config),
    tasks,
    devices,
    slots,
    explainer: makeExplainer(options, slots, devices),
    confinement,
    version,
    startTimeMs: Date.now(),
    stopping,
    supervisor,
    ...work,
  };
}

/** Makes the parts that read and change the store and its folders. */
function makeRecords({
  config,
  log,
  quotas,
  store: { db, info, identity, feed, leases, blobs, stage },
}: ServerPartsOptions) {
  const { dataFolder, freeDiskBytesMin } = config;
  const journal = new JobJournal(db, feed, () => leases.now());
  const store = new JobStore(db);
  const parts = stage.isShared ? new UploadParts(db, blobs, config.uploadPartBytes) : null;
  const datasets = new DatasetStore(db, dataFolder, feed, leases, quotas, parts);
  const weights = new WeightsStore(db, dataFolder, stage, quotas, parts);
  const undelete = { undeleteMs: config.undeleteSeconds * 1000 };
  return {
    journal,
    store,
    queue: new JobQueue(
      journal,
      leases,
      {
        jobsMax: config.queueJobsMax,
        ownerRunningMax: config.ownerRunningMax,
      },
      quotas,
    ),
    gangPlaces: new GangPlaces(db, leases),
    control: new JobControl(store, journal),
    attempts: new JobAttempts(journal, dataFolder),
    checkpoints: new CheckpointStore(db, dataFolder, stage),
    artifacts: new ArtifactStore(db, dataFolder, stage),
    exports: new ArtifactExports(db, dataFolder, feed, leases, blobs, stage, quotas),
    datasets,
    uploads: new DatasetUploads(datasets, stage, { freeDiskBytesMin }, parts),
    weights,
    weightsUploads: new WeightsUploads(weights, { freeDiskBytesMin }, parts),
    imports: new JobImports(dataFolder, { freeDiskBytesMin }),
    jobDeletion: new JobDeletion({ db, blobs, stage }, journal, undelete),
    datasetDeletion: new DatasetDeletion({ db, blobs, stage }, feed, undelete),
    disk: new DiskReader(db, dataFolder),
    scrubber: new Scrubber(db, stage),
    allowedFolders: new AllowedFolders(config.allowedFolders),
    stage,
    quotas,
    usage: new UsageStore(db, leases),
    audit: new AuditLog(db, log, config.auditFile),
    pageTokens: new PageTokens(info.pageTokenKey),
    identity,
  };
}

type Records = ReturnType<typeof makeRecords>;

/** Finds out in a child what jobs can run on; cards are watched once they are found. */
function makeDevices(
  { log, store, metrics, stopping }: ServerPartsOptions,
  tasks: TaskRunner,
  trainings: () => { running: number; begun: number },
): DeviceCatalog {
  const load = { loadRatio: machineLoadRatio, trainings };
  const elsewhere = async (): Promise<DeviceDescription[]> => {
    const servers = (await store.leases.servers()) ?? [];
    return servers.flatMap((server) => JSON.parse(server.devices) as DeviceDescription[]);
  };
  const speeds = new ReachedSpeedStore(store.db);
  const devices = new DeviceCatalog(tasks, log, stopping, load, speeds, elsewhere);
  const cardMetrics = new CardMetrics(metrics, tasks, log, stopping);
  devices.onFound(() => cardMetrics.watch(devices.cards() ?? []));
  return devices;
}

function makeExplainer(
  { config, quotas, store: { db, leases } }: ServerPartsOptions,
  slots: Slots,
  devices: DeviceCatalog,
): JobExplainer {
  const machine: OwnMachine = {
    places: () => ({ processorSlots: config.slots, cardSlots: slots.cardSlotCount }),
    devices: () => devices.lastMeasured,
    resolve: (spec) => slots.resolve(spec),
    secondsOf: (spec, device) => devices.secondsOf(spec, device),
  };
  return new JobExplainer(db, leases, config, machine, quotas);
}

/** Makes the parts that read journals to their ends and report the events elsewhere. */
function makeFollowers(
  { config, log, store: { db, feed, leases }, metrics, onStoreFailure }: ServerPartsOptions,
  { journal, store }: Records,
) {
  const readers = new JournalReaders(db, leases);
  const parts = { readers, journal, store, feed, leases, metrics, config, log, onStoreFailure };
  const webhooks = new WebhookStore(db, feed, readers, () => leases.now());
  const reachable = new Reachable(config.webhookNetworks);
  return {
    webhooks,
    reachable,
    webhookSender: new WebhookSender({ ...parts, webhooks, reachable, toJson: eventJson() }),
    trackers: new Trackers({ ...parts, specOf: (job) => JobSpec.fromPartial(toSpec(job.spec)) }),
  };
}

/** Makes the parts that work without a call: jobs, exports, data set preparation and cleanup. */
function makeWork(
  { config, log, store: { db, feed, leases, blobs, stage }, metrics, onStoreFailure }: ServerPartsOptions,
  records: Records,
  tasks: TaskRunner,
  slots: Slots,
  confinement: Confinement,
) {
  const { dataFolder } = config;
  const { journal, jobDeletion, datasetDeletion, datasets, weights, disk, uploads, weightsUploads } = records;
  const supervisor: Supervisor = new Supervisor({
    config,
    ...records,
    feed,
    leases,
    slots,
    confinement,
    log,
    onStoreFailure,
  });
  return {
    supervisor,
    exporter: new ArtifactExporter({
      ...records,
      tasks,
      saveCheckpoint: async (jobId) => await supervisor.saveCheckpoint(jobId),
      dataFolder,
      feed,
      leases,
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
      checkpoints: records.checkpoints,
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
