import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { toDatasetSummary } from '../../server/dist/api/toProto.js';
import { AllowedFolders } from '../../server/dist/datasets/allowedFolders.js';
import type { DatasetSpec } from '../../server/dist/datasets/dataset.js';
import { DatasetPreparer } from '../../server/dist/trainer/datasetPreparer.js';
import { DatasetUploads, type DatasetUpload } from '../../server/dist/datasets/datasetUploads.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { releasedFolder } from '../golden/releasedFolder.js';
import { openParts, scriptedTrainer, temporaryFolder, type Parts } from './parts.js';
import { ofFileAlone, releasedFolderReason } from './testStore.js';

const spec = (textField = 'text'): DatasetSpec => ({
  tokenizer: { kind: 'bytes' },
  heldOutShare: 0.01,
  textField,
  seed: 0,
});
const text = Buffer.from('Once upon a time there was an adapter of rank four.');
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const upload = (bytes: Uint8Array = text, changes = {}) => ({
  fileName: '../../a.txt',
  serverPath: null,
  format: 'text' as const,
  split: null,
  sizeBytes: bytes.length,
  sha256: sha256(bytes),
  ...changes,
});

async function register(parts: Parts, files = [upload()], datasetId = 'tales') {
  const dataset = await parts.datasets.register({ datasetId, displayName: 'Tales', files, spec: spec() });
  if (typeof dataset === 'string') throw new Error(dataset);
  return dataset;
}

async function opened(uploads: DatasetUploads, id = 'tales'): Promise<DatasetUpload> {
  const session = await uploads.open(id);
  if (typeof session === 'string') throw new Error(session);
  return session;
}

const tokenizerJson = JSON.stringify({ model: { vocab: { '"é\u0001</s>': 0 } } });
const withTokenizer: DatasetSpec = { ...spec(), tokenizer: { kind: 'huggingFace', tokenizerJson } };

describe('the content of a tokenizer', () => {
  it('is read by what prepares a data set alone: it may be megabytes', async () => {
    const parts = await openParts();
    const dataset = { datasetId: 'tales', displayName: '', files: [upload()] };
    await parts.datasets.register({ ...dataset, spec: withTokenizer });
    expect((await parts.datasets.find('tales'))?.spec.tokenizer).toEqual({ kind: 'huggingFace' });
    // This identifies an upload that resumes.
    expect(await parts.datasets.register({ ...dataset, spec: withTokenizer })).toMatchObject({ id: 'tales' });
    const other: DatasetSpec = {
      ...withTokenizer,
      tokenizer: { kind: 'huggingFace', tokenizerJson: `${tokenizerJson} ` },
    };
    expect(await parts.datasets.register({ ...dataset, spec: other })).toBe('conflict');
    await parts.datasets.uploaded('tales');
    expect((await parts.datasets.nextToPrepare())?.spec).toEqual(withTokenizer);
  });

  it('of 0.1.0 is found, which had it in the specification', async (context) => {
    ofFileAlone(context, releasedFolderReason);
    const { dataFolder, remove } = releasedFolder();
    onTestFinished(remove);
    // In a process that exits without closing: the lock of a file may outlive its connection.
    const script = `
      const [file, spec] = process.argv.slice(1);
      new (require('@photostructure/sqlite').DatabaseSync)(file).prepare("update datasets set spec = ? where id = 'text'").run(spec);
      process.kill(process.pid, 'SIGKILL');`;
    const file = join(dataFolder, 'store.db');
    spawnSync(process.execPath, ['-e', script, file, JSON.stringify(withTokenizer)], {
      cwd: import.meta.dirname,
    });
    const parts = await openParts({}, dataFolder);
    const dataset = (await parts.datasets.find('text'))!;
    expect(dataset.spec).toEqual({ ...withTokenizer, tokenizer: { kind: 'huggingFace' } });
    const again = { datasetId: 'text', displayName: '', files: dataset.files, spec: withTokenizer };
    expect(await parts.datasets.register(again)).toMatchObject({ id: 'text', state: 'ready' });
  });
});

describe('an upload', () => {
  it('is preparing when every byte is there, and its names never are paths', async () => {
    const parts = await openParts();
    const uploads = new DatasetUploads(parts.datasets, parts.stage, parts.config);
    expect(await register(parts)).toMatchObject({ state: 'uploading', files: [{ receivedBytes: 0 }] });
    const session = await opened(uploads);
    expect(await session.write(0, 0, text.subarray(0, 10))).toBe('written');
    expect((await parts.datasets.find('tales'))?.files[0]?.receivedBytes).toBe(10);
    expect(await session.finish()).toEqual({ outcome: 'incomplete' });
    expect(await session.write(0, 10, text.subarray(10))).toBe('written');
    expect(await session.finish()).toMatchObject({ outcome: 'done', dataset: { state: 'preparing' } });
    await session.close();
    expect(readFileSync(parts.datasets.uploadPath('tales', 0)).equals(text)).toBe(true);
    expect(parts.datasets.uploadPath('tales', 0)).toBe(
      join(parts.dataFolder, 'datasets', 'tales', 'uploads', '0'),
    );
    expect(await uploads.open('tales')).toBe('closed');
  });

  it('resumes where it stopped, also when the server was started again', async () => {
    const dataFolder = temporaryFolder();
    const first = await openParts({}, dataFolder);
    await register(first);
    const broken = await opened(new DatasetUploads(first.datasets, first.stage, first.config)); // still open, as after a crash
    onTestFinished(async () => await broken.close());
    await broken.write(0, 0, text.subarray(0, 20));
    await first.close();

    const parts = await openParts({}, dataFolder);
    const again = await register(parts);
    expect(again).toMatchObject({ state: 'uploading', files: [{ receivedBytes: 20 }] });
    const session = await opened(new DatasetUploads(parts.datasets, parts.stage, parts.config));
    expect(session.receivedBytes).toEqual([20]);
    expect(await session.write(0, 0, text)).toBe('wrongOffset');
    expect(await session.write(0, 20, text.subarray(20))).toBe('written');
    expect(await session.finish()).toMatchObject({ outcome: 'done' });
    await session.close();
  });

  it('refuses what does not fit: another file, too many bytes, a wrong hash', async () => {
    const parts = await openParts();
    await register(parts, [upload(text, { sha256: sha256(Buffer.from('other')) })]);
    const session = await opened(new DatasetUploads(parts.datasets, parts.stage, parts.config));
    expect(await session.write(1, 0, text)).toBe('noFile');
    expect(await session.write(0, 0, Buffer.concat([text, text]))).toBe('tooLong');
    expect(await session.write(0, 0, text)).toBe('written');
    expect(await session.finish()).toMatchObject({
      outcome: 'wrongHash',
      fileName: '../../a.txt',
      actual: sha256(text),
    });
    // The file was dropped: it can be sent again from its beginning.
    expect(session.receivedBytes).toEqual([0]);
    expect(await parts.datasets.find('tales')).toMatchObject({
      state: 'uploading',
      files: [{ receivedBytes: 0 }],
    });
    await session.close();
  });

  it('belongs to one client at a time, and stops at the disk floor', async () => {
    const parts = await openParts({ RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) });
    await register(parts);
    const uploads = new DatasetUploads(parts.datasets, parts.stage, parts.config);
    const session = await opened(uploads);
    expect(await uploads.open('tales')).toBe('busy');
    expect(await uploads.open('unknown')).toBe('notFound');
    expect(await session.write(0, 0, text)).toBe('noSpace');
    await session.close();
    await (await opened(uploads)).close();
  });

  it('does not write through a link', async () => {
    const parts = await openParts();
    await register(parts);
    const session = await opened(new DatasetUploads(parts.datasets, parts.stage, parts.config));
    const target = join(parts.dataFolder, 'target');
    symlinkSync(target, parts.datasets.uploadPath('tales', 0));
    await expect(session.write(0, 0, text)).rejects.toThrow('ELOOP');
    expect(existsSync(target)).toBe(false);
    await session.close();
  });

  it('with the same id resumes only with the same files and settings', async () => {
    const parts = await openParts();
    await register(parts);
    expect(await register(parts)).toMatchObject({ id: 'tales' });
    const other = {
      datasetId: 'tales',
      displayName: 'Tales',
      files: [upload(Buffer.from('x'))],
      spec: spec(),
    };
    expect(await parts.datasets.register(other)).toBe('conflict');
    expect(await parts.datasets.register({ ...other, files: [upload()], spec: spec('body') })).toBe(
      'conflict',
    );
  });
});

describe('preparation', () => {
  const serverFile = {
    fileName: 'a.txt',
    serverPath: '/a.txt',
    format: 'text' as const,
    split: null,
    sizeBytes: 3,
    sha256: null,
  };

  function preparer(parts: Parts): DatasetPreparer {
    const preparer = new DatasetPreparer(
      parts.datasets,
      new TaskRunner(parts.config, parts.log, scriptedTrainer),
      parts.config,
      parts.feed,
      parts.leases,
      parts.stage,
      parts.log,
      (error) => parts.storeFailures.push(error),
    );
    onTestFinished(async () => await preparer.stop());
    return preparer;
  }

  async function settled(parts: Parts, id: string) {
    for (;;) {
      const dataset = await parts.datasets.find(id);
      if (dataset?.state === 'ready' || dataset?.state === 'failed') return dataset;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  it('makes data sets ready one after another, and removes the uploaded text', async () => {
    const parts = await openParts();
    preparer(parts).start();
    await parts.datasets.register({ datasetId: 'first', displayName: '', files: [serverFile], spec: spec() });
    await register(parts);
    const session = await opened(new DatasetUploads(parts.datasets, parts.stage, parts.config));
    await session.write(0, 0, text);
    await session.finish();
    await session.close();
    expect(await settled(parts, 'first')).toMatchObject({
      state: 'ready',
      preparedRatio: 1,
      prepared: { train: { tokenCount: 10 } },
    });
    expect(await settled(parts, 'tales')).toMatchObject({
      state: 'ready',
      files: [{ receivedBytes: text.length }],
    });
    expect(readFileSync(join(parts.datasets.preparedFolder('first'), 'manifest.json'), 'utf8')).toBe(
      '["/a.txt"]',
    );
    await parts.datasets.register({ datasetId: 'third', displayName: '', files: [serverFile], spec: spec() });
    await settled(parts, 'third');
    expect(existsSync(parts.datasets.uploadPath('tales', 0))).toBe(false);
  });

  it('is tried again by the same request where a limit or the machine was the reason, and only there', async () => {
    const parts = await openParts();
    preparer(parts).start();
    const again = async (id: string) =>
      await parts.datasets.register({ datasetId: id, displayName: '', files: [serverFile], spec: spec(id) });
    for (const id of ['fail', 'crash']) await again(id);
    for (const id of ['fail', 'crash']) await settled(parts, id);
    expect(await again('fail')).toMatchObject({ state: 'failed' }); // its data are invalid
    expect(await again('crash')).toMatchObject({ state: 'preparing', failure: null });
    expect(await settled(parts, 'crash')).toMatchObject({ failure: { reason: 'TASK_CRASHED' } });
  });

  it('fails with the reason of the data, or after two crashes', async () => {
    const parts = await openParts();
    preparer(parts).start();
    for (const id of ['fail', 'crash'])
      await parts.datasets.register({ datasetId: id, displayName: '', files: [serverFile], spec: spec(id) });
    expect(await settled(parts, 'fail')).toMatchObject({
      state: 'failed',
      failure: { reason: 'DATASET_LINE_BROKEN', message: 'Line 3 is not JSON' },
    });
    expect(await settled(parts, 'crash')).toMatchObject({
      state: 'failed',
      failure: { reason: 'TASK_CRASHED' },
    });
    expect(parts.storeFailures).toEqual([]);
  });

  it('starts again with the next server, over what was left', async () => {
    const dataFolder = temporaryFolder();
    const first = await openParts({}, dataFolder);
    await first.datasets.register({ datasetId: 'tales', displayName: '', files: [serverFile], spec: spec() });
    for (const name of ['.preparing', 'prepared'])
      mkdirSync(join(dataFolder, 'datasets', 'tales', name), { recursive: true });
    writeFileSync(join(dataFolder, 'datasets', 'tales', 'prepared', 'half'), '');
    await first.close();
    const parts = await openParts({}, dataFolder);
    preparer(parts).start();
    expect((await settled(parts, 'tales')).state).toBe('ready');
    expect(existsSync(join(dataFolder, 'datasets', 'tales', 'prepared', 'half'))).toBe(false);
  });

  it('says how fast it is and when it will be done, by what is done so far', async () => {
    const { datasets } = await openParts();
    const named = { datasetId: 'large', displayName: '', files: [serverFile], spec: spec('large') };
    await datasets.register(named);
    const speed = async () => (await datasets.findHead('large'))?.preparedRatioPerSecond;
    datasets.setPreparedRatio('large', 0.1, 10_000);
    expect(await speed()).toBeUndefined();
    datasets.setPreparedRatio('large', 0.3, 12_000);
    datasets.setPreparedRatio('large', 0.5, 14_000);
    expect(await speed()).toBeCloseTo(0.1, 10);
    const [listed] = (await datasets.list({ after: null, datasetsMax: 1 })).datasets;
    expect(toDatasetSummary({ ...listed!, sizeBytes: 4e9 })).toMatchObject({
      preparedRatio: 0.5,
      preparedBytesPerSecond: expect.closeTo(4e8, 0) as number,
      preparationRemainingSeconds: expect.closeTo(5, 6) as number,
    });
    // Another attempt starts from 0.
    datasets.setPreparedRatio('large', 0.2, 20_000);
    expect(await speed()).toBeUndefined();
  });

  it('stops with the server and leaves the data set to the next', async () => {
    const parts = await openParts();
    const one = preparer(parts);
    await parts.datasets.register({
      datasetId: 'slow',
      displayName: '',
      files: [serverFile],
      spec: spec('slow'),
    });
    one.start();
    while ((await parts.datasets.find('slow'))?.preparedRatio !== 0.5)
      await new Promise((resolve) => setTimeout(resolve, 10));
    await one.stop();
    expect((await parts.datasets.find('slow'))?.state).toBe('preparing');
  });
});

describe('a path of the server', () => {
  it('must be a regular file inside an allowed folder, links resolved', async () => {
    const folder = temporaryFolder();
    const [inside, outside] = ['inside', 'outside'].map((name) => join(folder, name)) as [string, string];
    mkdirSync(join(inside, 'sub'), { recursive: true });
    mkdirSync(outside);
    for (const path of [join(inside, 'a.txt'), join(outside, 'b.txt'), join(folder, 'inside-not')])
      writeFileSync(path, 'abc');
    symlinkSync(join(outside, 'b.txt'), join(inside, 'link-out'));
    symlinkSync(join(inside, 'a.txt'), join(inside, 'link-in'));
    spawnSync('mkfifo', [join(inside, 'pipe')]);
    const allowed = new AllowedFolders([inside, '/does-not-exist']);

    expect(await allowed.file(join(inside, 'a.txt'))).toEqual({ path: join(inside, 'a.txt'), sizeBytes: 3 });
    expect(await allowed.file(join(inside, 'link-in'))).toEqual({
      path: join(inside, 'a.txt'),
      sizeBytes: 3,
    });
    expect(await allowed.folder(join(inside, 'sub'))).toEqual({ path: join(inside, 'sub') });
    for (const path of [
      join(outside, 'b.txt'),
      join(inside, '../outside/b.txt'),
      join(inside, 'link-out'),
      join(folder, 'inside-not'),
      join(inside, 'missing'),
      join(inside, 'sub'),
      join(inside, 'pipe'),
      '/dev/zero',
      '/proc/self/mem',
      'a.txt',
      `${inside}/a.txt\0`,
      '',
    ]) {
      expect(await allowed.file(path), path).toHaveProperty('problem');
    }
    expect(await allowed.folder(join(inside, 'a.txt'))).toHaveProperty('problem');
    expect(await new AllowedFolders([]).file(join(inside, 'a.txt'))).toHaveProperty('problem');
  });
});
