import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, test } from 'vitest';
import { checkpointLines } from '../../server/dist/archive/describeJob.js';
import { takeSnapshot } from '../../server/dist/archive/snapshot.js';
import type { Stage } from '../../server/dist/store/stage.js';
import { patienceMs } from '../patience.mjs';
import { openApiWithArtifact, refusalOf } from './apiServer.js';
import { claim, openParts, submit, type Parts } from './parts.js';

const manifest = '{"files":{}}';
const manifestSha256 = createHash('sha256').update(manifest).digest('hex');

/** A job with checkpoints of steps 10, 20 and 30, with empty manifests in their folders. */
async function jobWithCheckpoints(parts: Parts) {
  const job = await submit(parts);
  const key = { jobId: job.id, attempt: (await claim(parts)).attempt };
  for (const step of [10, 20, 30]) {
    const path = join(parts.dataFolder, 'jobs', job.id, 'checkpoints', `step-000000${step}-1`);
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, 'manifest.json'), manifest);
    const size = { sizeBytes: 12, manifestSha256, seconds: 0 };
    await parts.attempts.append(key, [{ timeMs: 1, body: { kind: 'checkpoint', step, path, ...size } }]);
  }
  return job;
}

describe('ExportJob', () => {
  it('refuses a job that was resumed while its record was written', async () => {
    const parts = await openParts();
    const job = await submit(parts);
    await parts.control.pause(job.id);
    const paused = (await parts.store.find(job.id))!;
    await parts.control.resume(job.id);
    await expect(takeSnapshot(parts, paused, { withDatasets: false })).rejects.toMatchObject({
      reason: 'JOB_STATE_WRONG',
      detail: { state: 'QUEUED', action: 'exported' },
    });
  });

  it('has no offset without a file', async () => {
    const { api, job } = await openApiWithArtifact();
    const request = { name: job, offsetBytes: 5 };
    const { fields } = await refusalOf((options) => api.training.exportJob(request, options));
    expect(fields).toEqual(['offset_bytes']);
  });
});

describe('checkpoints of an exported job', () => {
  it('come without one that is removed while they are read', async () => {
    const parts = await openParts();
    const job = await jobWithCheckpoints(parts);
    expect((await checkpointLines(parts, job)).map(({ step }) => step)).toEqual([30, 20, 10]);
    const take = async (folder: string) => {
      if (folder.includes('step-00000010')) await parts.checkpoints.prune(job.id, 2);
      return await parts.stage.take(folder);
    };
    const lines = await checkpointLines({ ...parts, stage: { ...parts.stage, take } as Stage }, job);
    expect(lines.map(({ step }) => step)).toEqual([30, 20]);
  });

  it('come with one that was taken before it is removed, whose folder goes afterwards', async () => {
    const parts = await openParts();
    const job = await jobWithCheckpoints(parts);
    const oldest = (await parts.checkpoints.list(job.id)).at(-1)!.folder;
    const take = async (folder: string) => {
      const release = await parts.stage.take(folder);
      if (folder.includes('step-00000010')) await parts.checkpoints.prune(job.id, 2);
      return release;
    };
    const lines = await checkpointLines({ ...parts, stage: { ...parts.stage, take } as Stage }, job);
    expect(lines.map(({ step }) => step)).toEqual([30, 20, 10]);
    expect((await parts.checkpoints.list(job.id)).map(({ step }) => step)).toEqual([30, 20]);
    await expect.poll(() => existsSync(oldest), { timeout: patienceMs }).toBe(false);
  });

  it.each([
    ['altered', (file: string) => writeFileSync(file, 'not JSON')],
    ['missing', (file: string) => rmSync(file)],
  ])('are refused where one is %s that is still listed', async (_, damage) => {
    const parts = await openParts();
    const job = await jobWithCheckpoints(parts);
    const [newest] = await parts.checkpoints.list(job.id);
    damage(join(newest!.folder, 'manifest.json'));
    const refusal = { reason: 'STORED_FILES_DAMAGED', detail: { name: `jobs/${job.id}` } };
    await expect(checkpointLines(parts, job)).rejects.toMatchObject(refusal);
  });
});

test.each([
  ['shorter', (file: string) => truncateSync(file, 5)],
  ['missing', (file: string) => rmSync(file)],
])(
  'a file of an artifact that is %s on the disk is refused by its name in an exported job',
  async (_, damage) => {
    const { api, job, artifact } = await openApiWithArtifact();
    const id = artifact.split('/').at(-1)!;
    damage(join(api.parts.dataFolder, job, 'artifacts', id, 'config.json'));
    const request = { name: job, fileName: `artifacts/${id}/config.json` };
    const { info } = await refusalOf((options) => api.training.exportJob(request, options));
    expect(info.reason).toBe('ARTIFACT_DAMAGED');
  },
);
