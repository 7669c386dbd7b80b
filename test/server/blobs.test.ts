import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ListMultipartUploadsCommand, S3Client } from '@aws-sdk/client-s3';
import { expect, it, onTestFinished, vi } from 'vitest';
import { chunkBytes, FolderBlobs, type BlobStore } from '../../server/dist/store/blobStore.js';
import { openBlobs } from '../../server/dist/store/openBlobs.js';
import { S3Blobs } from '../../server/dist/store/s3Blobs.js';
import { parseStoreUrl } from '../../server/dist/store/storeUrl.js';
import { s3Proxy } from '../faults/s3Proxy.js';
import { temporaryFolder } from './parts.js';
import { addS3User, freshBucket, hasS3, s3Server } from './s3.js';

async function* pieces(...texts: (string | Buffer)[]): AsyncGenerator<Uint8Array> {
  for (const text of texts) yield Buffer.from(text);
}

async function textOf(blobs: BlobStore, name: string, start: number, end: number): Promise<string> {
  const blob = (await blobs.openRead(name))!;
  const read: Uint8Array[] = [];
  for await (const piece of blob.read(start, end, 3)) read.push(piece);
  await blob.close();
  return Buffer.concat(read).toString();
}

const places = [
  {
    place: 'a folder',
    open: async (): Promise<BlobStore> => new FolderBlobs(temporaryFolder()),
    skip: false,
  },
  { place: 'S3', open: async (): Promise<BlobStore> => await s3Blobs(await freshBucket()), skip: !hasS3 },
].filter(({ skip }) => !skip);

it.each(places)(
  'a blob in $place is what was put, read by range, with the digests of its bytes and of each chunk',
  async ({ open }) => {
    const blobs = await open();
    // The standard check value of CRC32C.
    expect(await blobs.put('a/b/check', pieces('1234', '56789'))).toEqual({
      sizeBytes: 9,
      sha256: createHash('sha256').update('123456789').digest('hex'),
      crcs: [0xe3069283],
    });
    expect(await textOf(blobs, 'a/b/check', 0, 9)).toBe('123456789');
    expect(await textOf(blobs, 'a/b/check', 2, 7)).toBe('34567');
    expect((await blobs.put('empty', pieces())).crcs).toEqual([]);
    // In several parts where there are parts.
    const large = Buffer.alloc(2 * chunkBytes + 1, 'x');
    large.write('the border', chunkBytes - 4);
    large.write('end', 2 * chunkBytes - 2);
    const whole = await blobs.put('large', pieces(large));
    const parts = await blobs.put('large', pieces(large.subarray(0, 5), large.subarray(5)));
    expect(whole).toEqual(parts);
    expect(whole.crcs).toHaveLength(3);
    expect(await textOf(blobs, 'large', chunkBytes - 5, chunkBytes + 7)).toBe('xthe borderx');
    expect(await textOf(blobs, 'large', 2 * chunkBytes - 3, 2 * chunkBytes + 9)).toBe('xend');
  },
);

it('a blob that was not put whole is not there, and the one before it stays', async () => {
  const folder = temporaryFolder();
  const blobs = new FolderBlobs(folder);
  await blobs.put('jobs/one', pieces('before'));
  await expect(
    blobs.put(
      'jobs/one',
      (async function* () {
        yield Buffer.from('af');
        throw new Error('cut');
      })(),
    ),
  ).rejects.toThrow('cut');
  expect(await textOf(blobs, 'jobs/one', 0, 6)).toBe('before');
  expect(readdirSync(join(folder, 'jobs'))).toEqual(['one']);
});

it('lists and removes what is below a name, and no more', async () => {
  const folder = temporaryFolder();
  const blobs = new FolderBlobs(folder);
  for (const name of ['jobs/a/one', 'jobs/a/deep/two', 'jobs/ab/three']) await blobs.put(name, pieces(name));
  const names: string[] = [];
  for await (const { name, sizeBytes } of blobs.list('jobs/a')) names.push(`${name} ${sizeBytes}`);
  expect(names.sort()).toEqual(['jobs/a/deep/two 15', 'jobs/a/one 10']);
  await blobs.remove('jobs/a');
  await blobs.remove('jobs/a');
  expect(existsSync(join(folder, 'jobs/a'))).toBe(false);
  expect(await textOf(blobs, 'jobs/ab/three', 0, 13)).toBe('jobs/ab/three');
});

it.each(places)('what is listed in $place has the time since it was put', async ({ open }) => {
  const blobs = await open();
  await blobs.put('jobs/a/one', pieces('one'));
  for await (const { ageMs } of blobs.list('jobs')) expect(Math.abs(ageMs)).toBeLessThan(3_600_000);
  // A server whose clock is ahead must not take what another one has just put for old: S3 has a clock of its own.
  if (!(blobs instanceof S3Blobs)) return;
  vi.setSystemTime(Date.now() + 10 * 86_400_000);
  onTestFinished(() => void vi.useRealTimers());
  for await (const { ageMs } of blobs.list('jobs')) expect(Math.abs(ageMs)).toBeLessThan(3_600_000);
});

it('a name never leads out of the folder, and a link is no blob', async () => {
  const folder = temporaryFolder();
  const blobs = new FolderBlobs(join(folder, 'store'));
  for (const name of ['..', '../x', 'a/../../x', '/etc/passwd', 'a//b', '', 'a/./b', 'a\0b'])
    await expect(blobs.put(name, pieces('x')), name).rejects.toThrow('is not the name of a blob');
  mkdirSync(join(folder, 'store'));
  writeFileSync(join(folder, 'secret'), 'secret');
  symlinkSync(join(folder, 'secret'), join(folder, 'store', 'link'));
  expect(await blobs.openRead('link')).toBeUndefined();

  // Nor is a file behind a link, wherever it leads; but an operator may put a whole kind on another disk.
  await blobs.put('jobs/a/artifacts/one/file', pieces('ours'));
  for (const swapped of ['jobs/a/artifacts/one', 'jobs/a/artifacts', 'jobs/a']) {
    const path = join(folder, 'store', swapped);
    renameSync(path, join(folder, 'before'));
    symlinkSync(join(folder, 'before'), path);
    expect(await blobs.openRead('jobs/a/artifacts/one/file'), swapped).toBeUndefined();
    unlinkSync(path);
    renameSync(join(folder, 'before'), path);
  }
  renameSync(join(folder, 'store', 'jobs'), join(folder, 'disk'));
  symlinkSync(join(folder, 'disk'), join(folder, 'store', 'jobs'));
  expect(await textOf(blobs, 'jobs/a/artifacts/one/file', 0, 9)).toBe('ours');
});

it('an S3 server that takes a request and never answers is given up', async () => {
  let requestCount = 0;
  const silent = createServer((socket) => {
    socket.on('error', () => {}).once('data', () => requestCount++);
  });
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void silent.close());
  const { port } = silent.address() as { port: number };
  const url = parseStoreUrl(`s3://bucket/fleet?endpoint=http://127.0.0.1:${port}`)!;
  if (url.kind !== 's3') throw new Error('It names S3');
  const blobs = await S3Blobs.open(url, { silenceMs: 200 });
  onTestFinished(() => blobs.close());
  process.env.AWS_ACCESS_KEY_ID = 'test';
  process.env.AWS_SECRET_ACCESS_KEY = 'test-secret';
  await expect(blobs.put('jobs/one/a', pieces('a'))).rejects.toThrow();
  expect(requestCount).toBeGreaterThan(1);
});

/** Blobs in a bucket; through a proxy, if its port is given. */
async function s3Blobs(bucket: string, port?: number, uploadsInPage?: number): Promise<S3Blobs> {
  const url = parseStoreUrl(port === undefined ? bucket : bucket.replace(/\d+$/, String(port)))!;
  if (url.kind !== 's3') throw new Error('It names S3');
  const blobs = await S3Blobs.open(url, uploadsInPage === undefined ? {} : { uploadsInPage });
  onTestFinished(() => blobs.close());
  return blobs;
}

it.skipIf(!hasS3)('a blob whose bytes were changed on the way to S3 is sent again', async () => {
  const { port } = await s3Server();
  const proxy = await s3Proxy(port, () => (proxy.count < 2 ? 0 : 1));
  onTestFinished(async () => await proxy.close());
  proxy.fault = 'wrong';
  const blobs = await s3Blobs(await freshBucket(), proxy.port);
  await blobs.put('jobs/one/a', pieces('what is sent'));
  expect(proxy.count).toBe(2);
  proxy.fault = null;
  expect(await textOf(blobs, 'jobs/one/a', 0, 12)).toBe('what is sent');
});

/** Names of the objects whose upload in parts has begun and not ended, in a bucket of the S3 server. */
async function unfinishedIn(bucket: string): Promise<string[]> {
  const { hostname: Bucket, searchParams } = new URL(bucket);
  const client = new S3Client({
    region: 'us-east-1',
    endpoint: searchParams.get('endpoint')!,
    forcePathStyle: true,
  });
  onTestFinished(() => client.destroy());
  const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket }));
  return Uploads.map(({ Key }) => Key!.replace('fleet/', ''));
}

it.skipIf(!hasS3)(
  'parts of blobs whose put was cut in the middle are removed later, and nothing else',
  async () => {
    const { port } = await s3Server();
    const bucket = await freshBucket();
    const proxy = await s3Proxy(port, () => 0);
    onTestFinished(async () => await proxy.close());
    const cut = await s3Blobs(bucket, proxy.port);
    const names = ['jobs/one/a', 'jobs/one/b'];
    for (const name of names) {
      proxy.fault = null;
      const put = cut.put(
        name,
        (async function* () {
          yield Buffer.alloc(5 * chunkBytes, 'x');
          // Of five parts four are sent at a time, so one has arrived. Not even the request that discards it gets through.
          proxy.fault = 'cut';
          yield Buffer.alloc(chunkBytes, 'x');
        })(),
      );
      await expect(put).rejects.toThrow(/does not answer as it should/);
    }
    const blobs = await s3Blobs(bucket, undefined, 1);
    await blobs.put('jobs/one/whole', pieces('whole'));
    const listed: string[] = [];
    for await (const { name } of blobs.list('jobs')) listed.push(name);
    expect(listed).toEqual(['jobs/one/whole']);
    expect(await blobs.openRead(names[0]!)).toBeUndefined();

    // Another server may be making it just now, by the clock of S3: that of this machine may be days ahead.
    expect(await unfinishedIn(bucket)).toEqual(names);
    vi.setSystemTime(Date.now() + 10 * 86_400_000);
    onTestFinished(() => void vi.useRealTimers());
    await blobs.removeUnfinished(86_400_000);
    expect(await unfinishedIn(bucket)).toEqual(names);
    // S3 reports its time in whole seconds, so that what began within this one is from the future.
    await blobs.removeUnfinished(-1000);
    expect(await unfinishedIn(bucket)).toEqual([]);
    expect(await textOf(blobs, 'jobs/one/whole', 0, 5)).toBe('whole');
  },
);

it('of two stores that take one empty place for their own at the same moment at most one gets it', async () => {
  for (let round = 0; round < 20; round++) {
    const url = { kind: 'folder', path: temporaryFolder() } as const;
    const opened = await Promise.allSettled(['one', 'two'].map(async (name) => await openBlobs(url, name)));
    const got = opened.filter(({ status }) => status === 'fulfilled').length;
    expect(got).toBeLessThanOrEqual(1);
    for (const result of opened)
      if (result.status === 'rejected')
        expect(String(result.reason)).toMatch(
          /belongs to another database \(store (one|two), not (one|two)\)/,
        );
    // A third server gets a location that neither has.
    if (got === 0) await openBlobs(url, 'three');
    await expect(openBlobs(url, 'four')).rejects.toThrow(/belongs to another database/);
  }
});

it.skipIf(!hasS3)('an S3 server whose clock is an hour off is spoken with by its own clock', async () => {
  const clock = join(temporaryFolder(), 'clock');
  writeFileSync(clock, '3600000');
  const preload = fileURLToPath(new URL('../faults/clockOffset.cjs', import.meta.url));
  const opened = import.meta.resolve('../../server/dist/store/openBlobs.js');
  const parsed = import.meta.resolve('../../server/dist/store/storeUrl.js');
  const program = `
    const { openBlobs } = await import('${opened}');
    const { parseStoreUrl } = await import('${parsed}');
    await openBlobs(parseStoreUrl('${await freshBucket()}'), 'store');
    process.stdout.write(String(Date.now()));
    process.exit();`;
  const child = spawn(process.execPath, ['--require', preload, '--input-type=module', '--eval', program], {
    env: { ...process.env, TEST_CLOCK_FILE: clock },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  for await (const text of child.stdout) said += String(text);
  expect(Number(said)).toBeGreaterThan(Date.now() + 3_000_000);
});

it.skipIf(!hasS3)(
  'a bucket in which its user may not write is refused with what it has to be allowed',
  async () => {
    const url = parseStoreUrl(await freshBucket())!;
    const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = process.env;
    onTestFinished(() => void Object.assign(process.env, { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY }));
    await addS3User('stranger', 'stranger-secret');
    Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'stranger', AWS_SECRET_ACCESS_KEY: 'stranger-secret' });
    await expect(openBlobs(url, 'store')).rejects.toThrow(
      /AccessDenied, HTTP 403: .*check that it exists, and that this server may write, read, list and delete there/,
    );
  },
);
