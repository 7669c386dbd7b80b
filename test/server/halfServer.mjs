// The durable half of a server in its own process, to be killed: runs its jobs and prints every acknowledged journal entry.
import { pino } from 'pino';
import { ArtifactStore } from '../../server/dist/artifacts/artifactStore.js';
import { readConfig } from '../../server/dist/config.js';
import { DatasetStore } from '../../server/dist/datasets/datasetStore.js';
import { CheckpointStore } from '../../server/dist/jobs/checkpointStore.js';
import { JobAttempts } from '../../server/dist/jobs/jobAttempts.js';
import { JobJournal } from '../../server/dist/jobs/jobJournal.js';
import { JobQueue } from '../../server/dist/jobs/jobQueue.js';
import { JobStore } from '../../server/dist/jobs/jobStore.js';
import { WeightsStore } from '../../server/dist/weights/weightsStore.js';
import { openStore } from '../../server/dist/store/openStore.js';
import { Slots } from '../../server/dist/trainer/slots.js';
import { Supervisor } from '../../server/dist/trainer/supervisor.js';
import { patientSettings } from '../patience.mjs';

const [dataFolder, entry, newJobText] = process.argv.slice(2);
const config = readConfig({
  RELORA_DATA_FOLDER: dataFolder,
  RELORA_FREE_DISK_BYTES_MIN: '0',
  ...patientSettings,
  ...(process.env.LEASE_SECONDS && { RELORA_LEASE_SECONDS: process.env.LEASE_SECONDS }),
});
const { db, feed, leases, stage } = await openStore(dataFolder, {
  url: process.env.STORE_URL,
  leaseMs: config.leaseSeconds * 1000,
});
await leases.start(() => ({
  address: '',
  version: '0',
  devices: '[]',
  memoryBytes: 0,
  slots: 1,
  startTimeMs: 0,
}));
const journal = new JobJournal(db, feed);
const queue = new JobQueue(journal, leases, { jobsMax: 10 });
const supervisor = new Supervisor({
  config,
  queue,
  feed,
  leases,
  stage,
  entry,
  store: new JobStore(db),
  attempts: new JobAttempts(journal, dataFolder),
  checkpoints: new CheckpointStore(db, dataFolder, stage),
  artifacts: new ArtifactStore(db, dataFolder, stage),
  datasets: new DatasetStore(db, dataFolder, feed, leases),
  weights: new WeightsStore(db, dataFolder, stage),
  slots: new Slots(config, { devices: () => null, cards: () => [], problems: () => [], nccl: () => null }),
  log: pino({ level: 'silent' }),
  onStoreFailure: (error) => {
    throw error;
  },
});
journal.onAppended((job, events) => {
  process.stdout.write(
    `${JSON.stringify({ sequence: job.lastSequence, step: job.progress.step, state: job.state, pid: supervisor.trainerPid(job.id), count: events.length })}\n`,
  );
});
if (newJobText !== undefined) await queue.submit(JSON.parse(newJobText));
await supervisor.start();
