import { existsSync, linkSync, mkdirSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Status } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import type { JobOrigin } from '../../server/dist/jobs/job.js';
import { DatasetUploads } from '../../server/dist/datasets/datasetUploads.js';
import { DiskReader } from '../../server/dist/retention/diskUse.js';
import { Janitor } from '../../server/dist/retention/janitor.js';
import { surplusOf } from '../../server/dist/retention/retentionRule.js';
import { jobSpec, openApi, openApiWithArtifact, refusalOf, sha256, uploadOf } from './apiServer.js';
import {
  claim,
  execution,
  newJob,
  openParts,
  readyDataset,
  stepEvent,
  submit,
  temporaryFolder,
  type Parts,
} from './parts.js';
import { stores } from './postgres.js';
import { run, trainingParts } from './trainingParts.js';

/** One round of cleaning, with a list of what it deleted. */
async function clean(parts: Parts, uploading: string[] = []): Promise<string[]> {
  const purged: string[] = [];
  const janitor = new Janitor({
    ...parts,
    jobs: parts.jobDeletion,
    datasets: parts.datasetDeletion,
    isUploading: (name) => uploading.includes(name),
    onDiskUse: () => {},
    onPurged: (kind) => purged.push(kind),
    onStoreFailure: (error) => parts.storeFailures.push(error),
  });
  await janitor.clean();
  expect(parts.storeFailures).toEqual([]);
  return purged;
}

/** A failed job with checkpoints of these steps. */
async function endedJob(parts: Parts, steps: number[] = [], jobId: string | null = null) {
  const { id } = await submit(parts, { jobId });
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  await parts.attempts.append(key, [stepEvent(0)]);
  for (const step of steps) {
    const path = join(parts.dataFolder, 'jobs', id, 'checkpoints', `step-${step}-1`);
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, 'weights'), Buffer.alloc(10_000, step));
    const body = {
      kind: 'checkpoint',
      step,
      path,
      sizeBytes: 10_000,
      manifestSha256: 'a',
      seconds: 0,
    } as const;
    await parts.attempts.append(key, [{ timeMs: 1, body }]);
  }
  await parts.attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
  return id;
}

const originOf = (jobId: string, step: number): JobOrigin => ({
  jobId,
  step,
  folder: `step-${step}-1`,
  manifestSha256: 'a',
});

describe.each(stores)('on $name', ({ url, skip }) => {
  const open = async (settings: Record<string, string> = {}, dataFolder?: string, storeUrl?: string) =>
    await openParts(settings, dataFolder, undefined, storeUrl ?? (await url()));

  describe.skipIf(skip)('a deleted job', () => {
    it('is left out of lists, stays readable, and comes back as it was, also over a restart', async () => {
      const [dataFolder, storeUrl] = [temporaryFolder(), await url()];
      const parts = await open({}, dataFolder, storeUrl);
      const id = await endedJob(parts, [5]);
      const before = (await parts.store.find(id))!;
      const deleted = await parts.jobDeletion.delete(id);
      expect(deleted.outcome).toBe('done');
      const filter = { states: [], labels: {}, order: 'newestFirst', after: null, jobsMax: 10 } as const;
      expect((await parts.store.list({ ...filter, states: [] })).jobs).toEqual([]);
      const { jobs } = await parts.store.list({ ...filter, states: [], withDeleted: true });
      expect(jobs.map((job) => [job.id, job.deleteTimeMs !== null])).toEqual([[id, true]]);
      const again = await parts.jobDeletion.delete(id);
      expect(again).toEqual(deleted);
      await clean(parts);
      await parts.close();

      const restarted = await open({}, dataFolder, storeUrl);
      expect((await restarted.jobDeletion.undelete(id)).outcome).toBe('done');
      const { version, updateTimeMs, ...rest } = (await restarted.store.find(id))!;
      expect({ ...rest, version: before.version, updateTimeMs: before.updateTimeMs }).toEqual(before);
      expect([version, updateTimeMs >= before.updateTimeMs]).toEqual([before.version + 2, true]);
      expect(existsSync(join(dataFolder, 'jobs', id, 'checkpoints', 'step-5-1'))).toBe(true);
      expect((await restarted.jobDeletion.undelete(id)).outcome).toBe('done');
    });

    it('is gone with its rows, journal and files after its time, and a late retry makes no new one', async () => {
      const parts = await open({ RELORA_UNDELETE_SECONDS: '0' });
      const request = { requestId: 'r', requestDigest: 'd' };
      const { id } = await submit(parts, request);
      await parts.control.cancel(id);
      const other = await endedJob(parts, [5]);
      mkdirSync(join(parts.dataFolder, 'jobs', id), { recursive: true });
      await parts.jobDeletion.delete(id);
      expect(await parts.store.find(id)).toBeUndefined();
      expect((await parts.jobDeletion.undelete(id)).outcome).toBe('notFound');
      expect(await clean(parts)).toEqual(['job']);
      expect(existsSync(join(parts.dataFolder, 'jobs', id))).toBe(false);
      const tables = ['jobs', 'events', 'checkpoints'] as const;
      const owners = await Promise.all(
        tables.map(async (table) => {
          const column = table === 'jobs' ? 'id' : 'job_id';
          const rows = await parts.db
            .selectFrom(table)
            .select(column as 'id')
            .execute();
          return new Set(rows.map((row) => Object.values(row)[0]));
        }),
      );
      expect(owners).toEqual(tables.map(() => new Set([other])));
      expect(await parts.queue.submit(newJob(request))).toEqual({ goneJobId: id });
      const { expire_time_ms } = await parts.db
        .selectFrom('requests')
        .select('expire_time_ms')
        .executeTakeFirstOrThrow();
      expect(expire_time_ms! - Date.now()).toBeGreaterThan(29 * 86_400_000);
      await parts.db.updateTable('requests').set({ expire_time_ms: 1 }).execute();
      await clean(parts);
      expect(await parts.queue.submit(newJob(request))).toMatchObject({ isRepeated: false });
    });

    it('whose purge a crash cut short keeps its id, and is thrown away by the next round', async () => {
      const parts = await open({ RELORA_UNDELETE_SECONDS: '0' });
      const id = await endedJob(parts, [5]);
      await parts.jobDeletion.delete(id);
      const { remove } = parts.blobs;
      parts.blobs.remove = async () => {
        throw new Error('The end of the server');
      };
      await expect(parts.jobDeletion.purge(id)).rejects.toThrow();
      expect(await parts.queue.submit(newJob({ jobId: id }))).toBe('taken');
      parts.blobs.remove = remove;
      await clean(parts);
      expect(existsSync(join(parts.dataFolder, 'jobs', id))).toBe(false);
      expect(await parts.queue.submit(newJob({ jobId: id }))).toMatchObject({ isRepeated: false });
    });

    it('leaves the files of a new one of its id alone', async () => {
      const parts = await open({ RELORA_UNDELETE_SECONDS: '0' });
      const id = await endedJob(parts, [5], 'again');
      await parts.jobDeletion.delete(id);
      await parts.jobDeletion.purge(id);
      expect(existsSync(join(parts.dataFolder, 'jobs', id))).toBe(false);
      await endedJob(parts, [7], id);
      await clean(parts);
      expect(existsSync(join(parts.dataFolder, 'jobs', id, 'checkpoints', 'step-7-1', 'weights'))).toBe(true);
    });

    it('is refused while it has not ended, while a job begins at it, and while it is exported', async () => {
      const parts = await open();
      const running = await submit(parts);
      expect((await parts.jobDeletion.delete(running.id)).outcome).toBe('wrongState');
      await parts.control.cancel(running.id);
      const id = await endedJob(parts, [5]);
      const fork = await submit(parts, { origin: originOf(id, 5) });
      expect(await parts.jobDeletion.delete(id)).toEqual({ outcome: 'usedBy', name: `jobs/${fork.id}` });
      await parts.control.cancel(fork.id);
      expect((await parts.jobDeletion.delete(id, { validateOnly: true })).outcome).toBe('done');
      expect((await parts.store.find(id))?.deleteTimeMs).toBeNull();

      const submission = await parts.exports.submit({
        jobId: id,
        format: 'huggingFace',
        weightType: 'float32',
        shardBytesMax: 1e9,
        checkpointStep: null,
        isRunning: false,
        requestId: null,
        requestDigest: '',
      });
      if (typeof submission === 'string') throw new Error(submission);
      const artifact = `jobs/${id}/artifacts/${submission.artifactId}`;
      expect(await parts.jobDeletion.delete(id)).toEqual({ outcome: 'usedBy', name: artifact });
      await parts.exports.delete(id, submission.artifactId);
      expect(await parts.jobDeletion.delete(id, { version: 1 })).toMatchObject({ outcome: 'changed' });
      expect((await parts.jobDeletion.delete(id)).outcome).toBe('done');
    });

    it('and a job that begins at it do not miss each other, however they meet', async () => {
      const parts = await open();
      for (let trial = 0; trial < 10; trial++) {
        const id = await endedJob(parts, [5]);
        const [deletion, submission] = await Promise.all([
          parts.jobDeletion.delete(id),
          parts.queue.submit(newJob({ origin: originOf(id, 5) })),
        ]);
        const isStarted = typeof submission !== 'string';
        expect([deletion.outcome, isStarted]).toEqual(isStarted ? ['usedBy', true] : ['done', false]);
        if (isStarted && 'job' in submission) await parts.control.cancel(submission.job.id);
      }
    });
  });

  describe.skipIf(skip)('a deleted data set', () => {
    it('is refused while a job needs it, and no job begins on it', async () => {
      const parts = await open();
      await readyDataset(parts);
      const { id } = await submit(parts);
      expect(await parts.datasetDeletion.delete('text')).toEqual({ outcome: 'usedBy', name: `jobs/${id}` });
      await parts.control.cancel(id);
      expect(await parts.datasetDeletion.delete('text')).toEqual({ outcome: 'done' });
      expect(await parts.datasetDeletion.delete('text')).toEqual({ outcome: 'done' });
      expect(await parts.queue.submit(newJob())).toEqual({ deletedDatasetId: 'text' });
      const page = { after: null, datasetsMax: 10 };
      expect((await parts.datasets.list(page)).datasets).toEqual([]);
      expect((await parts.datasets.list({ ...page, withDeleted: true })).datasets).toHaveLength(1);
      expect(await parts.datasetDeletion.undelete('text')).toEqual({ outcome: 'done' });
      expect(await parts.queue.submit(newJob())).toMatchObject({ isRepeated: false });
      expect(await parts.datasetDeletion.delete('nothing')).toEqual({ outcome: 'notFound' });
    });

    it('is not uploaded to: not from the beginning, not where its upload stopped, and not by one that is at its end', async () => {
      const parts = await open();
      const content = Buffer.from('Once upon a time');
      const file = { format: 'text', split: null, serverPath: null, sizeBytes: content.length } as const;
      const spec = { tokenizer: { kind: 'bytes' }, heldOutShare: 0.1, textField: 'text', seed: 0 } as const;
      const files = [{ ...file, fileName: 'a', sha256: sha256(content) }];
      const tales = { datasetId: 'tales', displayName: '', files, spec };
      const uploads = new DatasetUploads(parts.datasets, parts.stage, parts.config);
      await parts.datasets.register(tales);
      const session = await uploads.open('tales');
      if (typeof session === 'string') throw new Error(session);
      await session.write(0, 0, content);
      // As when the janitor of another server takes it for abandoned.
      await parts.datasetDeletion.delete('tales');
      expect(await session.finish()).toEqual({ outcome: 'deleted' });
      await session.close();
      expect((await parts.datasets.find('tales'))?.state).toBe('uploading');
      expect(await parts.datasets.register(tales)).toBe('deleted');
      expect(await parts.datasets.register({ ...tales, files: [] })).toBe('deleted');
      expect(await uploads.open('tales')).toBe('deleted');

      await parts.datasetDeletion.undelete('tales');
      expect(await parts.datasets.register(tales)).toMatchObject({
        state: 'uploading',
        files: [{ receivedBytes: content.length }],
      });
      const again = await uploads.open('tales');
      if (typeof again === 'string') throw new Error(again);
      expect(await again.finish()).toMatchObject({ outcome: 'done', dataset: { state: 'preparing' } });
      await again.close();

      // A failed one would be prepared again.
      const { epoch } = (await parts.datasets.nextToPrepare())!;
      await parts.datasets.failed({ id: 'tales', epoch }, { reason: 'TASK_CRASHED', message: '' });
      await parts.datasetDeletion.delete('tales');
      expect(await parts.datasets.register(tales)).toBe('deleted');
      expect((await parts.datasets.find('tales'))?.state).toBe('failed');
    });

    it('is prepared when it comes back, if that is what it waits for', async () => {
      const parts = await open();
      await readyDataset(parts);
      await parts.datasetDeletion.delete('text');
      // As in stores from before uploads to deleted ones were refused.
      await parts.db.updateTable('datasets').set({ state: 'preparing' }).execute();
      expect(await parts.datasets.nextToPrepare()).toBeUndefined();
      const announced: unknown[] = [];
      parts.feed.listen((change) => announced.push(change));
      await parts.datasetDeletion.undelete('text');
      await expect.poll(() => announced).toContainEqual({ topic: 'dataset', id: 'text' });
      expect(await parts.datasets.nextToPrepare()).toMatchObject({ id: 'text' });
    });

    it('that ended jobs used keeps its tokenizer until the last of them is gone', async () => {
      const parts = await open({ RELORA_UNDELETE_SECONDS: '0' });
      await readyDataset(parts);
      const prepared = parts.datasets.preparedFolder('text');
      mkdirSync(prepared, { recursive: true });
      for (const name of ['manifest.json', 'tokenizer.json', 'train-00000.bin', 'held-out.txt'])
        writeFileSync(join(prepared, name), name);
      const id = await endedJob(parts);
      await parts.datasetDeletion.delete('text');
      expect(await clean(parts)).toEqual(['dataset']);
      expect(await parts.datasets.find('text')).toBeUndefined();
      expect(existsSync(join(prepared, 'train-00000.bin'))).toBe(false);
      expect(existsSync(join(prepared, 'tokenizer.json'))).toBe(true);
      expect(await clean(parts)).toEqual([]);
      await expect(readyDataset(parts)).rejects.toThrow('nameKept');
      // Data that belongs to existing jobs does not count as being deleted.
      const use = await new DiskReader(parts.db, parts.dataFolder).read();
      expect(use).toMatchObject({ deletedBytes: 0 });
      expect(use.entries).toContainEqual(
        expect.objectContaining({ name: 'datasets/text', purgeTimeMs: null }) as object,
      );
      await parts.jobDeletion.delete(id);
      await clean(parts);
      await clean(parts);
      expect(existsSync(join(prepared, '..'))).toBe(false);
      expect(await parts.db.selectFrom('datasets').selectAll().execute()).toEqual([]);
      await readyDataset(parts);
    });
  });

  describe.skipIf(skip)('the retention settings', () => {
    it('delete ended jobs alone, and never what somebody needs', async () => {
      const parts = await open({ RELORA_JOB_RETENTION_COUNT: '1' });
      const ids: string[] = [];
      for (const jobId of ['oldest', 'needed', 'newest']) {
        ids.push(await endedJob(parts, [5], jobId));
        await new Promise((resolve) => setTimeout(resolve, 2)); // so that their end times differ
      }
      const fork = await submit(parts, { origin: originOf('needed', 5) });
      await parts.control.pause(fork.id);
      await clean(parts);
      const deleted = await Promise.all(
        [...ids, fork.id].map(async (id) => (await parts.store.find(id))!.deleteTimeMs !== null),
      );
      expect(deleted).toEqual([true, false, false, false]);
    });

    it('throw away checkpoints of ended jobs, but not the newest, nor one that a job begins at', async () => {
      const parts = await open({ RELORA_CHECKPOINT_RETENTION_DAYS: '1' });
      const id = await endedJob(parts, [5, 10, 15]);
      await parts.db.updateTable('checkpoints').set({ create_time_ms: 1 }).execute();
      const fork = await submit(parts, { origin: originOf(id, 5) });
      expect(await clean(parts)).toEqual(['checkpoint']);
      expect((await parts.checkpoints.list(id)).map(({ step }) => step)).toEqual([15, 5]);
      await parts.control.cancel(fork.id);
      await clean(parts);
      expect((await parts.checkpoints.list(id)).map(({ step }) => step)).toEqual([15]);
      expect(existsSync(join(parts.dataFolder, 'jobs', id, 'checkpoints', 'step-15-1'))).toBe(true);
    });

    it('throw away uploads that nobody continues, and none that is under way or was taken up lately', async () => {
      const parts = await open();
      const file = { format: 'text', split: null, serverPath: null, sizeBytes: 9, sha256: null } as const;
      const spec = { tokenizer: { kind: 'bytes' }, heldOutShare: 0.1, textField: 'text', seed: 0 } as const;
      for (const datasetId of ['left', 'open', 'lately']) {
        await parts.datasets.register({
          datasetId,
          displayName: '',
          files: [{ ...file, fileName: 'a' }],
          spec,
        });
        const path = parts.datasets.uploadPath(datasetId, 0);
        mkdirSync(join(path, '..'), { recursive: true });
        writeFileSync(path, 'half');
        if (datasetId !== 'lately') utimesSync(path, 1, 1);
      }
      await parts.db.updateTable('datasets').set({ update_time_ms: 1 }).execute();
      expect(await clean(parts, ['datasets/open'])).toEqual(['upload']);
      const { datasets } = await parts.datasets.list({ after: null, datasetsMax: 10 });
      expect(datasets.map(({ id }) => id).sort()).toEqual(['lately', 'open']);
    });
  });
});

describe('over the API', () => {
  it('what is deleted says when it is gone, and how much that frees', async () => {
    const { api, job, artifact } = await openApiWithArtifact();
    const { freedBytes, job: same } = await api.training.deleteJob({ name: job, validateOnly: true });
    expect(same?.deleteTime).toBeUndefined();
    expect(freedBytes).toBeGreaterThan(0);
    const deleted = await api.training.deleteJob({ name: job });
    const keptMs = deleted.job!.purgeTime!.getTime() - deleted.job!.deleteTime!.getTime();
    expect(keptMs).toBe(7 * 86_400_000);
    expect((await api.training.listJobs({})).jobs).toEqual([]);
    expect((await api.training.listJobs({ showDeleted: true })).jobs).toHaveLength(1);
    expect((await api.training.getJob({ name: job })).job?.deleteTime).toBeDefined();
    const use = await api.server.getDiskUse({});
    expect(use.entries[0]).toMatchObject({ name: job, purgeTime: deleted.job!.purgeTime });
    expect(use.deletedBytes).toBe(use.jobBytes);
    expect(
      await refusalOf((options) =>
        api.artifacts.exportWeights({ job, format: 'EXPORT_FORMAT_GGUF' }, options),
      ),
    ).toMatchObject({ info: { reason: 'JOB_DELETED' } });
    expect((await api.artifacts.getArtifact({ name: artifact })).artifact?.name).toBe(artifact);
    expect((await api.training.undeleteJob({ name: job })).job?.deleteTime).toBeUndefined();
    const missing = { name: 'jobs/nobody' };
    expect(await refusalOf((options) => api.training.deleteJob(missing, options))).toMatchObject({
      code: Status.NOT_FOUND,
    });
    expect(await api.training.deleteJob({ ...missing, allowMissing: true })).toEqual({
      job: undefined,
      freedBytes: 0,
    });
  });

  it('an upload under the name of a deleted data set is refused, with what to do', async () => {
    const { datasets } = await openApi();
    const content = Buffer.from('Once upon a time');
    await datasets.uploadDataset(uploadOf(content, [[0, content.subarray(0, 4)]])).catch(() => {}); // it stops early
    await datasets.deleteDataset({ name: 'datasets/tales' });
    for (const text of [content, Buffer.from('other')])
      expect(await refusalOf((options) => datasets.uploadDataset(uploadOf(text), options))).toMatchObject({
        code: Status.FAILED_PRECONDITION,
        info: { reason: 'DATASET_DELETED', metadata: { datasetId: 'tales' } },
        message: expect.stringContaining('UndeleteDataset restores it'),
      });
  });

  it('a fork of a job whose data set is deleted fails with that reason', async () => {
    const { api, job } = await openApiWithArtifact();
    await api.datasets.deleteDataset({ name: 'datasets/text' });
    expect(await refusalOf((options) => api.training.forkJob({ name: job }, options))).toMatchObject({
      info: { reason: 'DATASET_DELETED' },
    });
    expect(await refusalOf((options) => api.training.createJob({ spec: jobSpec() }, options))).toMatchObject({
      info: { reason: 'DATASET_DELETED' },
    });
    await api.datasets.undeleteDataset({ name: 'datasets/text' });
    await api.training.forkJob({ name: job, checkpointStep: 5 }).catch(() => {}); // may be pruned; it must only not be DATASET_DELETED
    await api.training.createJob({ spec: jobSpec() });
  });

  it('a download that has begun continues to its end though the job is purged meanwhile', async () => {
    const { api, job, artifact } = await openApiWithArtifact({ RELORA_UNDELETE_SECONDS: '0' });
    const { files } = (await api.artifacts.getArtifact({ name: artifact })).artifact!;
    const { fileName, sizeBytes } = files[0]!;
    const chunks = api.artifacts.downloadArtifact({ name: artifact, fileName })[Symbol.asyncIterator]();
    let received = ((await chunks.next()).value?.data.length as number | undefined) ?? 0;
    await api.training.deleteJob({ name: job });
    await clean(api.parts);
    expect(existsSync(join(api.parts.dataFolder, job))).toBe(false);
    for (let next = await chunks.next(); next.done !== true; next = await chunks.next())
      received += next.value.data.length;
    expect(received).toBe(sizeBytes);
  });
});

describe('a retention rule', () => {
  const day = 86_400_000;
  const items = [1, 2, 3, 4].map((age) => ({ age, timeMs: 10 * day - age * day, bytes: 10 }));
  const ages = (rule: { days?: number; count?: number; bytes?: number }, spared = 0) =>
    surplusOf(items, { days: 0, count: 0, bytes: 0, ...rule }, 10 * day, spared).map(({ age }) => age);

  it('goes by age, count and bytes, the oldest first, and spares what it has to', () => {
    expect(ages({})).toEqual([]);
    expect(ages({ days: 2.5 })).toEqual([3, 4]);
    expect(ages({ count: 1 })).toEqual([2, 3, 4]);
    expect(ages({ bytes: 25 })).toEqual([3, 4]);
    expect(ages({ bytes: 1 }, 1)).toEqual([2, 3, 4]);
    expect(ages({ days: 0.5 }, 2)).toEqual([3, 4]);
  });
});

it('counts once what several names share, and frees it with the last of them', async () => {
  const parts = await openParts();
  for (const id of ['one', 'two']) mkdirSync(join(parts.dataFolder, 'jobs', id), { recursive: true });
  const [one, two] = ['one', 'two'].map((id) => join(parts.dataFolder, 'jobs', id, 'weights'));
  writeFileSync(one!, Buffer.alloc(100_000, 1));
  linkSync(one!, two!);
  const use = await parts.disk.read();
  expect(use.jobBytes).toBeGreaterThanOrEqual(100_000);
  expect(use.jobBytes).toBeLessThan(150_000);
  expect(await parts.disk.freedBytes('jobs', 'one')).toBe(0);
  linkSync(one!, `${one!}.again`);
  expect(use.entries.map(({ name }) => name)).toEqual(['jobs/one', 'jobs/two']);
});

it('a job that has ended can be exported when nothing but the tokenizer is left of its data set', async () => {
  const parts = await trainingParts({ RELORA_UNDELETE_SECONDS: '0' });
  const job = await run(parts);
  expect(job.state).toBe('succeeded');
  await parts.datasetDeletion.delete('text');
  expect(await clean(parts)).toEqual(['dataset']);
  const checkpoint = (await parts.checkpoints.newest(job.id))!;
  const result = await parts.tasks.exportWeights(
    {
      job: `jobs/${job.id}`,
      checkpoint: { path: checkpoint.folder, manifestSha256: checkpoint.manifestSha256 },
      datasetFolder: parts.datasets.preparedFolder('text'),
      outputFolder: join(parts.dataFolder, 'exported'),
      sequenceLength: 16,
      format: 'huggingFace',
      weightType: 'float32',
      shardBytesMax: 1e9,
    },
    { signal: new AbortController().signal, log: parts.log },
  );
  expect(result.files.map(({ fileName }) => fileName)).toContain('tokenizer.json');
});
