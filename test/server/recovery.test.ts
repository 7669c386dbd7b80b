import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import {
  allEvents,
  briefLease,
  claim,
  jobWhen,
  newJob,
  openParts,
  readyDataset,
  runSpec,
  scriptedTrainer,
  statesOf,
  submit,
  temporaryFolder,
  startHalfServer,
  untilGone,
} from './parts.js';

interface Reported {
  sequence: number;
  step: number;
  pid?: number;
}

/** Runs a job on a server that is killed after it has reported a step; returns its last report and the process id of its trainer. */
async function killedServer(
  dataFolder: string,
  jobId: string,
  step: number,
  script = 'slow',
): Promise<Reported> {
  const first = await openParts(briefLease, dataFolder);
  await readyDataset(first);
  await first.close();
  const job = newJob({ jobId, spec: runSpec(script, { stepCount: 30 }) });
  const server = await startHalfServer(dataFolder, scriptedTrainer, job);
  let last: Reported = { sequence: 0, step: 0 };
  for await (const line of createInterface({ input: server.stdout })) {
    last = { ...last, ...(JSON.parse(line) as Reported) };
    if (last.step >= step) server.kill('SIGKILL');
  }
  return last;
}

describe('after kill -9 of the server in the middle of a job', () => {
  it.each([2, 12, 23])(
    'its trainer ends by itself, nothing reported is lost, and the job resumes from its checkpoint (step %i)',
    async (step) => {
      const dataFolder = temporaryFolder();
      const reported = await killedServer(dataFolder, 'job-one', step);
      await untilGone(reported.pid!);

      const parts = await openParts(briefLease, dataFolder);
      const before = await allEvents(parts, 'job-one');
      expect(before.length).toBeGreaterThanOrEqual(reported.sequence);
      const checkpointStep = (await parts.checkpoints.newest('job-one'))?.step ?? 0;
      expect(checkpointStep).toBeGreaterThanOrEqual(Math.floor(reported.step / 5) * 5 - 5);

      await parts.supervisor.start();
      const job = await jobWhen(parts, 'job-one', ({ state }) => isTerminal(state));
      expect(job).toMatchObject({ state: 'succeeded', attempt: 2 });
      const events = await allEvents(parts, 'job-one');
      // A watcher that saw the first part finds it unchanged, and the rest after its last number.
      expect(events.slice(0, before.length)).toEqual(before);
      expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
      const resumed = events.find(({ attempt, body }) => attempt === 2 && body.kind === 'step');
      expect(resumed?.body).toMatchObject({ step: checkpointStep });
    },
  );
});

it('a trainer whose server is killed ends by itself in the middle of a long computation too', async () => {
  const reported = await killedServer(temporaryFolder(), 'job-one', 3, 'spin');
  await untilGone(reported.pid!);
});

describe('at its start a server', () => {
  it('honors wishes that were stored before it died, and counts its own death as an attempt', async () => {
    const dataFolder = temporaryFolder();
    const settings = { ...briefLease, RELORA_SLOTS: '1', RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '2' };
    const first = await openParts(settings, dataFolder);
    await readyDataset(first);
    const ids = [];
    for (const jobId of ['to-pause', 'to-cancel', 'to-retry']) {
      ids.push((await submit(first, { jobId })).id);
      await claim(first);
    }
    await first.control.pause('to-pause');
    await first.control.cancel('to-cancel');
    await first.close(); // the jobs are left `starting`, as by a server that died

    const parts = await openParts(settings, dataFolder);
    await parts.supervisor.start();
    await jobWhen(parts, 'to-pause', ({ state }) => state === 'paused');
    await jobWhen(parts, 'to-cancel', ({ state }) => state === 'cancelled');
    await jobWhen(parts, 'to-retry', ({ state }) => state === 'succeeded');
    expect(await statesOf(parts, 'to-retry')).toEqual([
      'queued',
      'starting',
      'queued',
      'starting',
      'running',
      'succeeded',
    ]);
  });

  it('fails a job that was running at each of its last deaths', async () => {
    const dataFolder = temporaryFolder();
    const noDisk = { RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) }; // keeps it from running
    for (let death = 1; death <= 3; death++) {
      const parts = await openParts({ ...briefLease, ...noDisk }, dataFolder);
      if (death === 1) await submit(parts, { jobId: 'job-one' });
      await parts.supervisor.start();
      await jobWhen(parts, 'job-one', ({ state }) => state === 'queued');
      await claim(parts);
      await parts.close();
    }
    const parts = await openParts(briefLease, dataFolder);
    await parts.supervisor.start();
    expect(await jobWhen(parts, 'job-one', ({ state }) => state === 'failed')).toMatchObject({
      state: 'failed',
      attempt: 3,
      failure: { reason: 'TRAINER_CRASHED' },
    });
  });

  it('removes what no row names, and nothing else', async () => {
    const dataFolder = temporaryFolder();
    const first = await openParts({}, dataFolder);
    const { id } = await submit(first);
    const key = { jobId: id, attempt: (await claim(first)).attempt };
    const folder = join(dataFolder, 'jobs', id);
    const path = join(folder, 'checkpoints', 'step-5-1');
    for (const name of [
      'checkpoints/step-5-1',
      'checkpoints/step-7-1',
      'checkpoints/.tmp-1-9-ab',
      'artifacts/.tmp-1-ab',
      'artifacts/merged-model-1',
      'start/.tmp-1-ab',
      'start/kept',
    ]) {
      mkdirSync(join(folder, name), { recursive: true });
    }
    await first.attempts.append(key, [
      {
        timeMs: 1,
        body: { kind: 'checkpoint', step: 5, path, sizeBytes: 1, manifestSha256: 'a'.repeat(64), seconds: 0 },
      },
    ]);
    await first.close();
    const noDisk = { RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) };
    const parts = await openParts({ ...briefLease, ...noDisk }, dataFolder);
    await parts.supervisor.start();
    await jobWhen(parts, id, ({ state }) => state === 'queued');
    expect(['checkpoints', 'artifacts', 'start'].map((name) => readdirSync(join(folder, name)))).toEqual([
      ['step-5-1'],
      [],
      ['kept'],
    ]);
  });
});
