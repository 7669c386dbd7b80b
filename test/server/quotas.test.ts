import { appendFileSync, chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readRecord } from '../../server/dist/archive/readRecord.js';
import { takeSnapshot } from '../../server/dist/archive/snapshot.js';
import { storeJob, type ReceivedJob } from '../../server/dist/archive/storeJob.js';
import { QuotaFileInvalid, readQuotaFile } from '../../server/dist/quotas/quotaFile.js';
import { deviceHoursOf } from '../../server/dist/quotas/quotaUse.js';
import { openApi, sha256 } from './apiServer.js';
import {
  claim,
  execution,
  newJob,
  onProcessors,
  openParts,
  runSpec,
  submit,
  temporaryFolder,
  type Parts,
} from './parts.js';
import { stores } from './postgres.js';

/** A quota file; `write` replaces it. */
function quotaFile(content: object): { path: string; write(content: object): void } {
  const path = join(temporaryFolder(), 'quotas.json');
  const write = (next: object): void => writeFileSync(path, JSON.stringify(next), { mode: 0o600 });
  write(content);
  return { path, write };
}

const explain = async (parts: Parts, id: string) =>
  await parts.explainer.explain((await parts.store.find(id))!);

describe.each(stores)('quotas on $name', ({ url, skip }) => {
  const open = async (path: string, storeUrl?: string): Promise<Parts> =>
    await openParts({ RELORA_QUOTA_FILE: path }, undefined, undefined, storeUrl ?? (await url()));

  it.skipIf(skip)(
    'of running jobs let a tenant wait, and nobody else, however many ask at once',
    async () => {
      const parts = await open(quotaFile({ tenants: { acme: { runningJobs: 1 } } }).path);
      const [first, second] = [
        await submit(parts, { tenant: 'acme' }),
        await submit(parts, { tenant: 'acme' }),
      ];
      const other = await submit(parts, { tenant: 'other' });
      const claims = await Promise.all([1, 2, 3].map(async () => await parts.queue.claimNext(onProcessors)));
      const ids = claims.flatMap((result) => ('job' in result ? [result.job.id] : []));
      expect(ids.sort()).toEqual([first.id, other.id].sort());
      expect(await explain(parts, second.id)).toMatchObject({
        reason: 'runningQuota',
        message:
          '1 jobs of the tenant acme run, and no more than 1 may (quota running_jobs): one of them must end',
      });
      await parts.attempts.failed({ jobId: first.id, attempt: 1 }, { reason: 'TASK_ERROR', message: '' });
      expect((await claim(parts)).id).toBe(second.id);
    },
  );

  it.skipIf(skip)(
    'of device hours let a tenant wait until its hours are longer ago than the window',
    async () => {
      const parts = await open(quotaFile({ default: { deviceHours: 2, windowDays: 1 } }).path);
      const nowMs = parts.leases.now();
      const hours = (count: number): number => count * 3_600_000;
      // Half of the first is before the window, so 1 hour of it counts, and 1.5 of the second, whose two processes each held a device.
      for (const [attempt, processes, startMs, endMs] of [
        [1, 1, nowMs - hours(25), nowMs - hours(23)],
        [2, 2, nowMs - hours(3), nowMs - hours(2.25)],
      ] as const)
        await parts.db
          .insertInto('attempts')
          .values({
            job_id: 'gone',
            job_create_time_ms: 1,
            attempt,
            tenant: 'default',
            labels: '{}',
            device: 'native',
            processes,
            start_time_ms: startMs,
            end_time_ms: endMs,
          })
          .execute();
      expect(await deviceHoursOf(parts.db, 'default', 1, nowMs)).toBeCloseTo(2.5, 6);
      const waiting = await submit(parts);
      const claimed = await parts.queue.claimNext(onProcessors);
      if ('job' in claimed) throw new Error('It has no hours left');
      // Only time frees the quota, so the job must be reconsidered later.
      expect(claimed.notBeforeMs).toBeGreaterThan(nowMs);
      const explained = await explain(parts, waiting.id);
      expect(explained).toMatchObject({ reason: 'deviceHoursQuota' });
      expect(explained.message).toMatch(/has used 2\.50 device hours in the last 1 days, and may use 2/);
      // In half an hour, 0.5 hours of the first have left the window.
      expect(Math.abs(explained.estimatedStartMs! - (nowMs + hours(0.5)))).toBeLessThan(10_000);
      await parts.db
        .updateTable('attempts')
        .set({ end_time_ms: nowMs - hours(24) })
        .where('attempt', '=', 1)
        .execute();
      expect((await claim(parts)).id).toBe(waiting.id);
    },
  );

  it.skipIf(skip)('count an attempt that runs', async () => {
    const parts = await open(quotaFile({ default: { deviceHours: 1 } }).path);
    await submit(parts);
    const running = await claim(parts);
    await parts.db
      .updateTable('attempts')
      .set({ start_time_ms: parts.leases.now() - 7_200_000 })
      .execute();
    const waiting = await submit(parts);
    expect(await parts.queue.claimNext(onProcessors)).not.toHaveProperty('job');
    expect(await explain(parts, waiting.id)).toMatchObject({
      reason: 'deviceHoursQuota',
      estimatedStartMs: null,
    });
    // Running jobs are not affected.
    expect((await parts.store.find(running.id))!.state).toBe('starting');
  });

  it.skipIf(skip)(
    'of jobs that wait refuse one more, by name, value and use; a repeated request is none',
    async () => {
      const parts = await open(quotaFile({ tenants: { acme: { queuedJobs: 2 } } }).path);
      const request = { tenant: 'acme', requestId: 'r', requestDigest: 'd' };
      const first = await submit(parts, request);
      const more = await Promise.allSettled(
        [1, 2, 3].map(async () => await submit(parts, { tenant: 'acme' })),
      );
      expect(more.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
      await expect(submit(parts, { tenant: 'acme' })).rejects.toMatchObject({
        reason: 'QUOTA_EXCEEDED',
        message: expect.stringContaining('Tenant acme may have 2 queued_jobs and has 2') as string,
      });
      expect(await parts.queue.submit(newJob(request))).toMatchObject({
        isRepeated: true,
        job: { id: first.id },
      });
      // A refused request is not remembered as done.
      const late = { tenant: 'acme', requestId: 'late', requestDigest: 'd' };
      await expect(submit(parts, late)).rejects.toMatchObject({ reason: 'QUOTA_EXCEEDED' });
      await parts.control.cancel(first.id);
      expect((await submit(parts, late)).state).toBe('queued');
      await submit(parts, { tenant: 'other' });
    },
  );

  it.skipIf(skip)(
    'of bytes refuse uploads, jobs and exports; what is uploaded again has its room',
    async () => {
      const parts = await open(quotaFile({ default: { bytes: 1000 } }).path);
      const upload = (datasetId: string, sizeBytes: number) => ({
        datasetId,
        displayName: '',
        files: [
          {
            fileName: 'a.txt',
            serverPath: null,
            format: 'text' as const,
            split: null,
            sizeBytes,
            sha256: 'a'.repeat(64),
          },
        ],
        spec: { tokenizer: { kind: 'bytes' as const }, heldOutShare: 0.01, textField: 'text', seed: 0 },
      });
      await parts.datasets.register(upload('first', 600));
      await expect(parts.datasets.register(upload('second', 401))).rejects.toMatchObject({
        reason: 'QUOTA_EXCEEDED',
        message: expect.stringContaining(
          'Tenant default may have 1000 bytes and has 600; this needs 401 more',
        ) as string,
      });
      expect(await parts.datasets.find('second')).toBeUndefined();
      expect(await parts.datasets.register(upload('first', 600))).toMatchObject({ id: 'first' });
      const weights = (weightsId: string, sizeBytes: number) => ({
        weightsId,
        displayName: '',
        files: [{ fileName: 'model.safetensors', sizeBytes, sha256: 'b'.repeat(64) }],
      });
      await expect(parts.weights.register(weights('big', 500))).rejects.toMatchObject({
        reason: 'QUOTA_EXCEEDED',
      });
      const { id } = await submit(parts);
      await parts.weights.register(weights('small', 300));
      const key = { jobId: id, attempt: (await claim(parts)).attempt };
      await parts.attempts.started(key, execution, 0);
      const path = join(parts.dataFolder, 'jobs', id, 'checkpoints', 'step-1-1');
      // Running jobs may exceed it.
      const checkpoint = { step: 1, path, sizeBytes: 200, manifestSha256: 'c'.repeat(64), seconds: 1 };
      await parts.attempts.append(key, [{ timeMs: 1, body: { kind: 'checkpoint', ...checkpoint } }]);
      expect(await parts.usage.held('default', 30)).toMatchObject({
        bytes: 1100,
        runningJobs: 1,
        queuedJobs: 0,
      });
      await expect(submit(parts)).rejects.toMatchObject({ reason: 'QUOTA_EXCEEDED' });
      await expect(
        parts.exports.submit({
          jobId: id,
          format: 'huggingFace',
          weightType: 'float32',
          shardBytesMax: 1e9,
          checkpointStep: 1,
          isRunning: true,
          requestId: null,
          requestDigest: '',
        }),
      ).rejects.toMatchObject({ reason: 'QUOTA_EXCEEDED' });
      await parts.weights.remove('small');
      expect((await submit(parts)).state).toBe('queued');
    },
  );
});

describe('the file of quotas', () => {
  it('holds as soon as it has changed; one with a mistake changes nothing', async () => {
    const file = quotaFile({ default: { queuedJobs: 0 } });
    const { parts } = await openApi({ RELORA_QUOTA_FILE: file.path });
    await expect(submit(parts)).rejects.toMatchObject({ reason: 'QUOTA_EXCEEDED' });
    const changed = new Promise<void>((resolve) => parts.quotas.onChange(resolve));
    file.write({ default: { queuedJobs: 1 } });
    await changed;
    await submit(parts);
    file.write({ default: { queuedJobs: -1 } });
    await expect(readQuotaFile(file.path)).rejects.toThrow(QuotaFileInvalid);
    expect(parts.quotas.of('anybody')).toMatchObject({ queuedJobs: 1 });
  });

  it('is refused with all that is wrong with it', async () => {
    const { path } = quotaFile({
      default: { runningJobs: 1.5, jobs: 3, windowDays: 0 },
      tenants: { 'Not One': { bytes: 'many' }, acme: [] },
      other: {},
    });
    await expect(readQuotaFile(path)).rejects.toThrow(
      [
        `${path}: "other" is not known; there are default and tenants`,
        'default.runningJobs must be a whole number from 0 to 100000, or null for no limit, not 1.5',
        'default: "jobs" is not known; there are runningJobs, queuedJobs, bytes, deviceHours, windowDays',
        'default.windowDays must be a number above 0 to 366, not 0',
        'tenants: "Not One" cannot be a tenant: 2 to 32 of a-z, 0-9 and -',
        'tenants.Not One.bytes must be a whole number from 0 to 1125899906842624, or null for no limit, not "many"',
        'tenants.acme must be an object, not []',
      ].join('; '),
    );
    const { path: open } = quotaFile({});
    chmodSync(open, 0o666);
    await expect(readQuotaFile(open)).rejects.toThrow(`${open} can be written by others than its owner`);
    await expect(readQuotaFile('/none')).rejects.toThrow('/none cannot be read');
  });

  it('gives each tenant what it names, and the default for the rest', async () => {
    const { path } = quotaFile({
      default: { runningJobs: 2, bytes: 10 },
      tenants: { acme: { runningJobs: null, deviceHours: 0.5 } },
    });
    const { default: byDefault, tenants } = await readQuotaFile(path);
    expect(byDefault).toEqual({
      runningJobs: 2,
      queuedJobs: null,
      bytes: 10,
      deviceHours: null,
      windowDays: 30,
    });
    expect(tenants.get('acme')).toEqual({ ...byDefault, runningJobs: null, deviceHours: 0.5 });
  });
});

it('a job that is imported without room for it leaves nothing, and can be imported once there is', async () => {
  const old = await openParts();
  const { id } = await submit(old, { jobId: 'moved' });
  await old.control.pause(id);
  const snapshot = await takeSnapshot(old, (await old.store.find(id))!, { withDatasets: false });
  const received = temporaryFolder();
  const pathOf = (index: number): string => join(received, String(index));
  for await (const piece of snapshot.record()) appendFileSync(pathOf(0), piece);
  await snapshot.close();
  const record = await readRecord(pathOf(0));
  const content = Buffer.alloc(2000, 'weights');
  writeFileSync(pathOf(1), content);
  const file = { fileName: 'config.json', sizeBytes: content.length, sha256: sha256(content) };
  record.artifacts.push({
    ...{ kind: 'artifact', id: 'model', step: 1, format: 'huggingFace', weightType: 'float32' },
    ...{ castErrorMax: 0, difference: null, cycle: null, createTimeMs: 1, files: [file] },
  });
  const { storeId, serverVersion } = record.job;
  const job: ReceivedJob = {
    ...{ jobId: id, tenant: 'default', owner: '', spec: runSpec(), datasetIds: [], record, pathOf },
    imported: { job: 'jobs/moved', storeId, serverVersion, timeMs: 1, recordSha256: '', origin: null },
    files: [...snapshot.files, { ...file, fileName: 'artifacts/model/config.json' }],
  };
  const quota = quotaFile({ default: { bytes: 1000 } });
  const parts = await openParts({ RELORA_QUOTA_FILE: quota.path });
  await expect(storeJob(parts, job)).rejects.toMatchObject({ reason: 'QUOTA_EXCEEDED' });
  expect(existsSync(join(parts.dataFolder, 'jobs', id))).toBe(false);
  const changed = new Promise<void>((resolve) => parts.quotas.onChange(resolve));
  quota.write({ default: { bytes: 10_000 } });
  await changed;
  expect(await storeJob(parts, job)).toMatchObject({ id, state: 'paused' });
  expect(
    readFileSync(join(parts.dataFolder, 'jobs', id, 'artifacts/model/config.json')).equals(content),
  ).toBe(true);
});

describe('GetQuota', () => {
  it('says what the tenant may have and has', async () => {
    const { path } = quotaFile({ default: { queuedJobs: 5, deviceHours: 3, windowDays: 7 } });
    const { parts, server, weights } = await openApi({ RELORA_QUOTA_FILE: path });
    await submit(parts);
    const file = { fileName: 'config.json', sizeBytes: 2, sha256: sha256(Buffer.from('{}')) };
    await parts.weights.register({ weightsId: 'some', displayName: '', files: [file] });
    expect(await server.getQuota({})).toEqual({
      tenant: 'default',
      quotas: [
        { name: 'running_jobs', used: 0, max: undefined, windowDays: 0 },
        { name: 'queued_jobs', used: 1, max: 5, windowDays: 0 },
        { name: 'bytes', used: 2, max: undefined, windowDays: 0 },
        { name: 'device_hours', used: 0, max: 3, windowDays: 7 },
      ],
    });
    await weights.deleteWeights({ name: 'weights/some' });
    expect((await server.getQuota({})).quotas[2]!.used).toBe(0);
  });
});
