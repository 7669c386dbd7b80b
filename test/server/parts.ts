import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { loadNativeAddon } from '@relora/engine';
import { defaultRunSpec, unmeasured, type GivenSpec, type RunSpec } from '@relora/engine/plan';
import { pino } from 'pino';
import { onTestFinished } from 'vitest';
import { ArtifactExports } from '../../server/dist/artifacts/artifactExports.js';
import { ArtifactStore } from '../../server/dist/artifacts/artifactStore.js';
import { readConfig, type Config } from '../../server/dist/config.js';
import { DatasetStore } from '../../server/dist/datasets/datasetStore.js';
import { CheckpointStore } from '../../server/dist/jobs/checkpointStore.js';
import { isTerminal, type Execution, type Job, type JobEvent } from '../../server/dist/jobs/job.js';
import { JobAttempts } from '../../server/dist/jobs/jobAttempts.js';
import type { NewEvent } from '../../server/dist/jobs/jobChange.js';
import { DatasetDeletion } from '../../server/dist/datasets/datasetDeletion.js';
import { JobDeletion } from '../../server/dist/jobs/jobDeletion.js';
import { Scrubber } from '../../server/dist/scrub/scrubber.js';
import { DiskReader } from '../../server/dist/retention/diskUse.js';
import type { OwnMachine } from '../../server/dist/jobs/queueSnapshot.js';
import { JobExplainer } from '../../server/dist/jobs/explainJob.js';
import { JobControl } from '../../server/dist/jobs/jobControl.js';
import { JobJournal } from '../../server/dist/jobs/jobJournal.js';
import { GangPlaces } from '../../server/dist/jobs/gangPlaces.js';
import { JobQueue, type NewJob } from '../../server/dist/jobs/jobQueue.js';
import { JobStore } from '../../server/dist/jobs/jobStore.js';
import { openStore } from '../../server/dist/store/openStore.js';
import type { FreeDevices } from '../../server/dist/jobs/jobDevices.js';
import { parseStoreUrl } from '../../server/dist/store/storeUrl.js';
import { Quotas } from '../../server/dist/quotas/quotas.js';
import { UsageStore } from '../../server/dist/usage/usageStore.js';
import { WeightsStore } from '../../server/dist/weights/weightsStore.js';
import { Slots } from '../../server/dist/trainer/slots.js';
import type { DeviceDescription } from '../../server/dist/jobs/jobDevices.js';
import { Supervisor } from '../../server/dist/trainer/supervisor.js';
import { patienceMs, patientSettings } from '../patience.mjs';
import { storeUrlOf } from './testStore.js';
import { stepBody } from './stepBody.mjs';

export const scriptedTrainer = fileURLToPath(new URL('./scriptedTrainer.mjs', import.meta.url));

/** Arguments: data folder, program of the trainers, a job to submit. */
const halfServer = fileURLToPath(new URL('./halfServer.mjs', import.meta.url));

/** Servers with a common store wait for the lease of a dead one to expire; a single server takes over at its start. */
export const briefLease = { RELORA_LEASE_SECONDS: '1' };

/** Starts a `halfServer`, by default on the store of its data folder, which runs a job and prints what it reports. */
export async function startHalfServer(
  dataFolder: string,
  entry: string,
  job: NewJob,
  lease = briefLease,
  url?: string,
) {
  const storeUrl = url ?? (await storeUrlOf(dataFolder));
  return spawn(process.execPath, [halfServer, dataFolder, entry, JSON.stringify(job)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      ...process.env,
      LEASE_SECONDS: lease.RELORA_LEASE_SECONDS,
      ...(storeUrl && { STORE_URL: storeUrl }),
    },
  });
}

/** A data folder that is removed after the test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'relora-test-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }));
  return folder;
}

export type Parts = Awaited<ReturnType<typeof openParts>>;

/** Description of the server in these tests. */
const description = {
  address: '127.0.0.1:1',
  version: '0',
  devices: '[]',
  memoryBytes: 0,
  slots: 1,
  cardSlots: 0,
  mpiHost: null,
  startTimeMs: 0,
};

/** The description of a CPU device that was not measured. */
export const processor = (backend: DeviceDescription['backend'], instructionSet = ''): DeviceDescription => ({
  ...unmeasured({ name: backend, instructionSet: null, threadCount: 1, precision: 'float32' }),
  ...{ backend, instructionSet, isDefault: false, model: 'A processor' },
  ...{ memoryBytes: 2 ** 34, uuid: '', computeCapability: '' },
});

/** Scripted trainers record no instructions, real ones those of this machine. */
const processors = [
  ...(['native', 'tensorflow', 'reference'] as const).map((name) => processor(name)),
  ...loadNativeAddon()
    .describe()
    .instructionSets.slice(0, 1)
    .map((best) => processor('native', best)),
];

/** The durable half of a server on a data folder, with short delays. */
export async function openParts(
  settings: Record<string, string> = {},
  dataFolder = temporaryFolder(),
  entry: string = scriptedTrainer,
  storeUrl?: string,
  blobsUrl: string | null = null,
  ownMachine: Partial<OwnMachine> = {},
) {
  const config: Config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_ALLOWED_FOLDERS: dataFolder, // tests put their sources there
    RELORA_RETRY_DELAY_SECONDS: '0.01',
    ...patientSettings,
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_LOG_LEVEL: 'silent',
    ...settings,
  });
  const url = storeUrl ?? (await storeUrlOf(dataFolder));
  const {
    db,
    info: storeInfo,
    identity,
    feed,
    leases,
    blobs,
    stage,
    close: closeStore,
  } = await openStore(dataFolder, {
    url,
    leaseMs: config.leaseSeconds * 1000,
    blobsUrl: blobsUrl === null ? null : parseStoreUrl(blobsUrl),
    cacheBytesMax: config.cacheBytesMax,
  });
  await leases.start(() => description);
  const log = pino({ level: process.env.TEST_LOG ?? 'silent' });
  const journal = new JobJournal(db, feed, () => leases.now());
  const store = new JobStore(db);
  const quotas = await Quotas.open(config.quotaFile, log);
  onTestFinished(() => quotas.close());
  const usage = new UsageStore(db, leases);
  const limits = { jobsMax: config.queueJobsMax, ownerRunningMax: config.ownerRunningMax };
  const queue = new JobQueue(journal, leases, limits, quotas);
  const control = new JobControl(store, journal);
  const machine: OwnMachine = {
    places: () => ({ processorSlots: config.slots, cardSlots: 0 }),
    devices: () => [],
    resolve: () => 'native',
    secondsOf: () => null,
    ...ownMachine,
  };
  const explainer = new JobExplainer(db, leases, config, machine, quotas);
  const attempts = new JobAttempts(journal, dataFolder);
  const checkpoints = new CheckpointStore(db, dataFolder, stage);
  const artifacts = new ArtifactStore(db, dataFolder, stage);
  const exports = new ArtifactExports(db, dataFolder, feed, leases, blobs, stage, quotas);
  const datasets = new DatasetStore(db, dataFolder, feed, leases, quotas);
  const weights = new WeightsStore(db, dataFolder, stage, quotas);
  const undelete = { undeleteMs: config.undeleteSeconds * 1000 };
  const jobDeletion = new JobDeletion({ db, blobs, stage }, journal, undelete);
  const datasetDeletion = new DatasetDeletion({ db, blobs, stage }, feed, undelete);
  const disk = new DiskReader(db, dataFolder);
  const scrubber = new Scrubber(db, stage);
  const storeFailures: unknown[] = [];
  const known = { devices: () => processors, cards: () => [], problems: () => [], nccl: () => null };
  const slots = new Slots(config, known);
  const supervisor = new Supervisor({
    config,
    store,
    queue,
    gangPlaces: new GangPlaces(db, leases),
    feed,
    leases,
    stage,
    attempts,
    checkpoints,
    artifacts,
    datasets,
    weights,
    slots,
    log,
    onStoreFailure: (error) => storeFailures.push(error),
    entry,
  });
  let isOpen = true;
  const close = async (): Promise<void> => {
    if (!isOpen) return;
    isOpen = false;
    await supervisor.stop(100);
    await closeStore();
  };
  onTestFinished(close);
  return {
    config,
    dataFolder,
    db,
    feed,
    leases,
    blobs,
    stage,
    storeInfo,
    identity,
    log,
    journal,
    store,
    queue,
    quotas,
    usage,
    control,
    explainer,
    attempts,
    checkpoints,
    artifacts,
    exports,
    datasets,
    weights,
    jobDeletion,
    datasetDeletion,
    disk,
    scrubber,
    supervisor,
    storeFailures,
    close,
  };
}

/** What a trainer reports about itself at its start. */
export const execution: Execution = {
  engineVersion: '1',
  backend: 'reference',
  instructionSet: '',
  threadCount: 1,
  precision: 'float32',
  datasetSha256: 'a'.repeat(64),
  basePrecision: 'float32',
  graphs: [{ module: 'q_proj', graph: 'separate' }],
  baseWeightsSha256: null,
  specSha256: 'b'.repeat(64),
  nodeVersion: '20.0.0',
  tfjsVersion: '4.0.0',
  deviceModel: 'A processor',
  cardUuid: '',
  libraries: [],
  replicas: 1,
};

/** A small specification; `script` controls the scripted trainer. */
export function runSpec(script = '', changes: GivenSpec = {}): RunSpec {
  return defaultRunSpec({
    model: {
      vocabSize: 257,
      hiddenSize: 16,
      intermediateSize: 32,
      numHiddenLayers: 1,
      numAttentionHeads: 2,
      maxPositionEmbeddings: 32,
    },
    warmStart: { stepCount: 0 },
    adapter: { rank: 4, alpha: 4, cycleStepCount: 5, restartWarmupStepCount: 1, targetModules: ['q_proj'] },
    stepCount: 20,
    learningRate: { warmupStepCount: 1 },
    batch: { sequenceLength: 8, sequenceCount: 2, microBatchSequenceCount: 2 },
    evaluation: { everyStepCount: 0, tokenCount: 64, finalTokenCount: 64 },
    checkpoint: { everyStepCount: 5 },
    sample: { prompt: script, tokenCount: 8 },
    ...changes,
  });
}

export function newJob(changes: Partial<NewJob> = {}): NewJob {
  return {
    jobId: null,
    displayName: 'A job',
    labels: {},
    spec: runSpec(),
    warnings: [],
    origin: null,
    requestId: null,
    requestDigest: 'digest',
    ...changes,
  };
}

export async function submit(parts: Parts, changes: Partial<NewJob> = {}): Promise<Job> {
  const submission = await parts.queue.submit(newJob(changes));
  if (typeof submission === 'string') throw new Error(`Not submitted: ${submission}`);
  if (!('job' in submission)) throw new Error(`Not submitted: ${JSON.stringify(submission)}`);
  return submission.job;
}

/** A data set for jobs of runSpec; the scripted trainer ignores its content. */
export async function readyDataset(parts: Parts, datasetId = 'text', tenant = 'default'): Promise<void> {
  const file = {
    fileName: 'a.txt',
    serverPath: '/a.txt',
    format: 'text' as const,
    split: null,
    sizeBytes: 1,
    sha256: null,
  };
  const registered = await parts.datasets.register({
    datasetId,
    tenant,
    displayName: '',
    files: [file],
    spec: { tokenizer: { kind: 'bytes' }, heldOutShare: 0.01, textField: 'text', seed: 0 },
  });
  if (typeof registered === 'string') throw new Error(`Not registered: ${registered}`);
  const size = { tokenCount: 100, documentCount: 1, textBytes: 100 };
  await parts.datasets.ready(
    { id: datasetId, epoch: 0 },
    {
      tokenizer: { kind: 'bytes', vocabularySize: 257, endOfTextId: 256, sha256: '' },
      train: size,
      heldOut: size,
      manifestSha256: 'a'.repeat(64),
    },
  );
}

/** A data set of many files with long names, none of which was sent yet. */
export async function registerFiles(parts: Parts, fileCount: number, datasetId = 'many'): Promise<void> {
  const files = Array.from({ length: fileCount }, (_, index) => ({
    fileName: `${String(index).padStart(190, 'x')}.txt`,
    serverPath: '',
    format: 'text' as const,
    split: null,
    sizeBytes: 1,
    sha256: 'a'.repeat(64),
  }));
  await parts.datasets.register({
    datasetId,
    displayName: '',
    files,
    spec: { tokenizer: { kind: 'bytes' }, heldOutShare: 0.01, textField: 'text', seed: 0 },
  });
}

/** Devices of a server without cards. */
export const onProcessors: FreeDevices = {
  free: ['native', 'tensorflow', 'reference'],
  pins: null,
  resolve: () => 'native',
};

export async function claim(parts: Parts): Promise<Job> {
  const claimed = await parts.queue.claimNext(onProcessors);
  if (!('job' in claimed)) throw new Error('Nothing to claim');
  return claimed.job;
}

/** Resolves with the job when a condition holds; checked at each journal entry. */
export async function jobWhen(parts: Parts, jobId: string, condition: (job: Job) => boolean): Promise<Job> {
  for (;;) {
    const job = await parts.store.find(jobId);
    if (job === undefined) throw new Error(`No job ${jobId}`);
    if (condition(job)) return job;
    if (isTerminal(job.state))
      throw new Error(`Job ${jobId} is ${job.state} (${job.stateReason}) at step ${job.progress.step}`);
    const signal = AbortSignal.timeout(patienceMs);
    await parts.journal.changedSince(jobId, job.lastSequence, signal);
    if (signal.aborted)
      throw new Error(`Job ${jobId} stays ${job.state} (${job.stateReason}), step ${job.progress.step}`);
  }
}

export async function allEvents(parts: Parts, jobId: string): Promise<JobEvent[]> {
  return (await parts.journal.readAfter(jobId, 0, 1_000_000)).events;
}

/** The states of a job, from its journal. */
export async function statesOf(parts: Parts, jobId: string): Promise<string[]> {
  return (await allEvents(parts, jobId)).flatMap(({ body }) => (body.kind === 'state' ? [body.to] : []));
}

export function stepEvent(step: number, loss = 3): NewEvent {
  return { timeMs: Date.now(), body: stepBody(step, { loss, skipped: !Number.isFinite(loss) }) };
}

/** Resolves when a process that is not our child has ended; this has to be polled. */
export async function untilGone(pid: number): Promise<void> {
  for (;;) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
