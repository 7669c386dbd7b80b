import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { NewExport } from '../../server/dist/artifacts/artifactExports.js';
import { ArtifactExporter, type ArtifactExporterParts } from '../../server/dist/trainer/artifactExporter.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { patienceMs } from '../patience.mjs';
import { claim, execution, openParts, runSpec, submit, type Parts } from './parts.js';

const wanted: Omit<NewExport, 'jobId'> = {
  format: 'gguf',
  weightType: 'q8_0',
  shardBytesMax: 1e9,
  checkpointStep: null,
  isRunning: false,
  requestId: null,
  requestDigest: '0'.repeat(64),
};

/** A running job with checkpoints of steps 10, 20 and 30. */
async function jobWithCheckpoints(parts: Parts) {
  const { id } = await submit(parts, {
    spec: runSpec('', { checkpoint: { everyStepCount: 5, keepCount: 2 } }),
  });
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  const folderOf = (step: number) =>
    join(parts.dataFolder, 'jobs', id, 'checkpoints', `step-000000${step}-1`);
  for (const step of [10, 20, 30]) {
    mkdirSync(folderOf(step), { recursive: true });
    const path = folderOf(step);
    const body = {
      kind: 'checkpoint',
      step,
      path,
      sizeBytes: 1,
      manifestSha256: 'a'.repeat(64),
      seconds: 0,
    } as const;
    await parts.attempts.append(key, [{ timeMs: 1, body }]);
  }
  return { jobId: id, folderOf };
}

function startExporter(
  parts: Parts,
  saveCheckpoint: ArtifactExporterParts['saveCheckpoint'] = async () => null,
): ArtifactExporter {
  const exporter = new ArtifactExporter({
    ...parts,
    tasks: new TaskRunner(parts.config, parts.log),
    saveCheckpoint,
    onStoreFailure: (error) => parts.storeFailures.push(error),
  });
  onTestFinished(async () => await exporter.stop());
  exporter.start();
  return exporter;
}

describe('a pending export', () => {
  it('keeps its checkpoint until it is done, beyond what a job keeps', async () => {
    const parts = await openParts();
    const { jobId, folderOf } = await jobWithCheckpoints(parts);
    await parts.exports.submit({ ...wanted, jobId, checkpointStep: 10 });
    await parts.checkpoints.prune(jobId, 2);
    expect(existsSync(folderOf(10))).toBe(true);
    const { row, checkpoint } = (await parts.exports.next())!;
    expect(checkpoint!.folder).toBe(folderOf(10));
    await parts.exports.failed(row, { reason: 'STORAGE_FULL', message: 'The disk is full' });
    await parts.checkpoints.prune(jobId, 2);
    expect(existsSync(folderOf(10))).toBe(false);
    expect(await parts.artifacts.find(jobId, row.id)).toMatchObject({
      state: 'failed',
      failure: { reason: 'STORAGE_FULL' },
    });
    expect(await parts.exports.next()).toBeUndefined();
  });

  it('leaves as many checkpoints as its job was changed to', async () => {
    const parts = await openParts();
    const { jobId } = await jobWithCheckpoints(parts);
    const change = { checkpoint: { keepCount: 3 } };
    await parts.control.update(jobId, { change, priority: null, labels: {}, removedLabels: [], digest: '' });
    await parts.exports.submit({ ...wanted, jobId, checkpointStep: 20 });
    const exporter = startExporter(parts);
    // The checkpoint has no manifest. Nothing reports the end of an export.
    const state = async () =>
      (await parts.artifacts.list(jobId, { after: null, artifactsMax: 1 })).artifacts[0]?.state;
    await expect.poll(state, { timeout: patienceMs }).toBe('failed');
    await exporter.stop(); // after it has removed what is left over
    expect((await parts.checkpoints.list(jobId)).map(({ step }) => step)).toEqual([30, 20, 10]);
  });

  it('of a running job waits for a checkpoint, and is given the newest', async () => {
    const parts = await openParts();
    const { jobId, folderOf } = await jobWithCheckpoints(parts);
    await parts.exports.submit({ ...wanted, jobId, isRunning: true });
    const { row, checkpoint } = (await parts.exports.next())!;
    expect(checkpoint).toBeNull();
    expect(await parts.exports.takeNewest(row)).toBe(true);
    await parts.exports.release(row);
    const next = (await parts.exports.next())!;
    expect(next.checkpoint!.folder).toBe(folderOf(30));
    expect(next.row.step).toBe(30);
  });

  it('of a starting job waits until the job runs, or is queued again', async () => {
    const parts = await openParts();
    const asked: string[] = [];
    let onAsked = (): void => {};
    startExporter(parts, async (jobId) => {
      asked.push(jobId);
      onAsked();
      return null;
    });
    const nextAsked = async (): Promise<void> => await new Promise((resolve) => (onAsked = resolve));

    const jobs = [await submit(parts), await submit(parts)];
    for (const _ of jobs) await claim(parts);
    for (const { id } of jobs) await parts.exports.submit({ ...wanted, jobId: id, isRunning: true });
    expect(await parts.exports.next()).toBeUndefined();
    expect(asked).toEqual([]);
    const [first, second] = jobs.map(({ id }) => ({ jobId: id, attempt: 1 }));
    const runs = nextAsked();
    await parts.attempts.started(first!, execution, 0);
    await runs;
    expect(asked).toEqual([first!.jobId]);
    const stopped = nextAsked();
    await parts.attempts.notStarted(second!, 'The trainer could not be started', 0);
    await stopped;
    expect(asked).toEqual([first!.jobId, second!.jobId]);
  });

  it('that was deleted does not come back when its process is done', async () => {
    const parts = await openParts();
    const { jobId } = await jobWithCheckpoints(parts);
    await parts.exports.submit({ ...wanted, jobId });
    const { row } = (await parts.exports.next())!;
    expect(await parts.exports.delete(jobId, row.id)).toBe('removed');
    expect(await parts.exports.ready(row, { files: [], castErrorMax: 0, cycle: null })).toBe(false);
    expect(await parts.artifacts.find(jobId, row.id)).toBeUndefined();
  });

  it('stays while a job that begins at it has not ended', async () => {
    const parts = await openParts();
    const { jobId } = await jobWithCheckpoints(parts);
    await parts.exports.submit({ ...wanted, jobId, format: 'huggingFace', weightType: 'float32' });
    const { row } = (await parts.exports.next())!;
    const baseWeightsName = `jobs/${jobId}/artifacts/${row.id}`;
    const user = await submit(parts, { spec: { ...runSpec(), baseWeightsName } });
    expect(await parts.exports.delete(jobId, row.id)).toEqual({ usedBy: `jobs/${user.id}` });
    expect(await parts.artifacts.find(jobId, row.id)).toBeDefined();
    await parts.control.cancel(user.id);
    expect(await parts.exports.delete(jobId, row.id)).toBe('removed');
  });

  it('is not one of a job without a checkpoint, or of a step that it does not have', async () => {
    const parts = await openParts();
    const { jobId } = await jobWithCheckpoints(parts);
    expect(await parts.exports.submit({ ...wanted, jobId, checkpointStep: 11 })).toBe('noCheckpoint');
    const { id } = await submit(parts);
    expect(await parts.exports.submit({ ...wanted, jobId: id })).toBe('noCheckpoint');
  });
});
