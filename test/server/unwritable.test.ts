import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { ArtifactExporter } from '../../server/dist/trainer/artifactExporter.js';
import { jobWhen, openParts, readyDataset, submit, type Parts } from './parts.js';
import { canMakeReadOnly, makeReadOnly } from './readOnly.js';
import { prepare, run, settings, spec, trainingParts } from './trainingParts.js';

type TrainingParts = Awaited<ReturnType<typeof trainingParts>>;

function startExporter(parts: Parts & Pick<TrainingParts, 'tasks'>): void {
  const exporter = new ArtifactExporter({
    ...parts,
    saveCheckpoint: async (jobId) => await parts.supervisor.saveCheckpoint(jobId),
    onStoreFailure: (error) => parts.storeFailures.push(error),
  });
  onTestFinished(async () => await exporter.stop());
  exporter.start();
}

async function submitExport({ exports }: Parts, jobId: string): Promise<string> {
  const submission = await exports.submit({
    jobId,
    format: 'huggingFace',
    weightType: 'float32',
    shardBytesMax: 1e9,
    checkpointStep: null,
    isRunning: false,
    requestId: null,
    requestDigest: '',
  });
  if (typeof submission === 'string') throw new Error(submission);
  return submission.artifactId;
}

/** The artifact once it is no longer pending. */
async function exported({ artifacts }: Parts, jobId: string, artifactId: string) {
  for (;;) {
    const artifact = await artifacts.find(jobId, artifactId);
    if (artifact?.state !== 'pending') return artifact!;
    await new Promise((resolve) => setTimeout(resolve, 20)); // nothing reports the end of an export
  }
}

describe.skipIf(!canMakeReadOnly)('a folder that cannot be written', () => {
  it('of a job fails its export alone, with the path and the cure, also one that a start finds', async () => {
    const parts = await trainingParts();
    const [job, healthy] = [await run(parts), await run(parts)];
    const folder = join(parts.dataFolder, 'jobs', job.id);
    const mend = makeReadOnly(folder);
    // Pending before the exporter starts, as left by a server that was killed.
    const pending = await submitExport(parts, job.id);
    startExporter(parts);
    const failed = await exported(parts, job.id, pending);
    expect(failed).toMatchObject({ state: 'failed', failure: { reason: 'STORAGE_UNWRITABLE' } });
    expect(failed.failure!.message).toContain(join(folder, 'exports'));
    expect(failed.failure!.message).toContain('give the user of the server the right to write there');
    expect(await exported(parts, healthy.id, await submitExport(parts, healthy.id))).toMatchObject({
      state: 'ready',
    });
    expect(parts.storeFailures).toEqual([]);

    mend();
    expect(await exported(parts, job.id, await submitExport(parts, job.id))).toMatchObject({
      state: 'ready',
    });
  });

  it('of checkpoints pauses the job, which resumes from there once it can be written', async () => {
    const parts = await trainingParts();
    const { id } = await submit(parts, { spec: spec({ stepCount: 60 }) });
    await jobWhen(parts, id, ({ progress }) => progress.checkpointStep !== null);
    const folder = join(parts.dataFolder, 'jobs', id, 'checkpoints');
    // Nothing may write while it is made read-only: a mount with open files cannot be.
    await parts.control.pause(id);
    await jobWhen(parts, id, ({ state }) => state === 'paused');
    const mend = makeReadOnly(folder);
    await parts.control.resume(id);
    const paused = await jobWhen(parts, id, ({ state, attempt }) => state === 'paused' && attempt === 2);
    expect(paused.stateReason).toContain(folder);
    expect(paused.stateReason).toMatch(/give the user of the server the right .*, then resume the job$/);
    const warnings = (await parts.journal.readAfter(id, 0, 1000)).events.flatMap(({ body }) =>
      body.kind === 'warning' ? [body.reason] : [],
    );
    expect(warnings).toContain('STORAGE_UNWRITABLE');
    mend();
    await parts.control.resume(id);
    const job = await jobWhen(parts, id, ({ state }) => isTerminal(state));
    expect(job).toMatchObject({ state: 'succeeded', attempt: 3 });
    expect(parts.storeFailures).toEqual([]);
  });

  it('of one data set fails that alone', async () => {
    const parts = await trainingParts();
    const folder = join(parts.dataFolder, 'datasets', 'stuck');
    mkdirSync(folder, { recursive: true });
    makeReadOnly(folder);
    const path = join(parts.dataFolder, 'tale.txt');
    const stuck = await prepare(parts, parts.tasks, 'stuck', [{ path, format: 'text' }]);
    expect(stuck).toMatchObject({ state: 'failed', failure: { reason: 'STORAGE_UNWRITABLE' } });
    expect(stuck.failure!.message).toContain(folder);
    expect(await prepare(parts, parts.tasks, 'free', [{ path, format: 'text' }])).toMatchObject({
      state: 'ready',
    });
    expect(parts.storeFailures).toEqual([]);
  });

  it('of jobs keeps the job in the queue with the reason, and lets it start once it can be written', async () => {
    const parts = await openParts(settings);
    const folder = join(parts.dataFolder, 'jobs');
    mkdirSync(folder);
    const mend = makeReadOnly(folder);
    await readyDataset(parts);
    await parts.supervisor.start();
    const { id } = await submit(parts, { spec: spec() });
    const waiting = await jobWhen(parts, id, ({ state, attempt }) => state === 'queued' && attempt > 0);
    expect(waiting.stateReason).toContain(`${join(folder, id)} cannot be written (`);
    expect(existsSync(join(folder, id))).toBe(false);
    mend();
    expect((await jobWhen(parts, id, ({ state }) => isTerminal(state))).attempt).toBe(2);
    expect(parts.storeFailures).toEqual([]);
  });
});
