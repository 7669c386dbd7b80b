import { JobState, type JobEvent } from '@relora/sdk/contract';
import { createLog, readConfig, startServer } from '@relora/server';
import { expect, onTestFinished, test } from 'vitest';
import { patientSettings } from '../patience.mjs';
import { storeSettings } from '../server/testStore.js';
import { temporaryFolder } from './tinyJob.js';
import { clientsOf, createTinyJob, statesOf, uploadTinyText, watchUntil } from './watchedJob.js';

test('a job whose trainer is killed resumes from its checkpoint, and its watcher misses and repeats nothing', async () => {
  const dataFolder = temporaryFolder();
  const config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_RETRY_DELAY_SECONDS: '0.01',
    RELORA_THREADS: '1',
    RELORA_LOG_LEVEL: 'silent',
    ...patientSettings,
    ...(await storeSettings(dataFolder)),
  });
  const server = await startServer(config, { log: createLog(config) });
  onTestFinished(async () => await server.stop());
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  // Far more steps than a trainer can do before it is killed.
  const name = await createTinyJob(clients, 300);

  const events: JobEvent[] = [];
  let isKilled = false;
  // A single watch over the job's whole life.
  await watchUntil(clients, name, events, ({ checkpoint }) => {
    if (checkpoint !== undefined && checkpoint.step >= 20 && !isKilled) {
      isKilled = true;
      process.kill(server.trainerPid(name.replace('jobs/', ''))!, 'SIGKILL');
    }
    return false;
  });
  expect(isKilled).toBe(true);
  expect(statesOf(events)).toEqual([
    JobState.QUEUED,
    JobState.STARTING,
    JobState.RUNNING,
    JobState.QUEUED,
    JobState.STARTING,
    JobState.RUNNING,
    JobState.SUCCEEDED,
  ]);
  const resumed = events.find(({ step, attempt }) => step !== undefined && attempt === 2);
  expect(resumed?.step?.step).toBeGreaterThanOrEqual(20);

  const metrics = await (await fetch(`http://${server.httpAddress}/metrics`)).text();
  expect(metrics).toContain('\nrelora_trainer_crashes_total 1\n');
  expect(metrics).toContain('\nrelora_attempts_total 2\n');
});
