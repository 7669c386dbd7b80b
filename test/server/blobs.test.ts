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
import { expect, it, onTestFinished } from 'vitest';
import { chunkBytes, FolderBlobs } from '../../server/dist/store/blobStore.js';
import { S3Blobs } from '../../server/dist/store/s3Blobs.js';
import { parseStoreUrl } from '../../server/dist/store/storeUrl.js';
import { temporaryFolder } from './parts.js';

async function* pieces(...texts: (string | Buffer)[]): AsyncGenerator<Uint8Array> {
  for (const text of texts) yield Buffer.from(text);
}

async function textOf(blobs: FolderBlobs, name: string, start: number, end: number): Promise<string> {
  const blob = (await blobs.openRead(name))!;
  const read: Uint8Array[] = [];
  for await (const piece of blob.read(start, end, 3)) read.push(piece);
  await blob.close();
  return Buffer.concat(read).toString();
}

it('a blob is what was put, read by range, with the digests of its bytes and of each chunk', async () => {
  const blobs = new FolderBlobs(temporaryFolder());
  // The check value of CRC32C.
  expect(await blobs.put('a/b/check', pieces('1234', '56789'))).toEqual({
    sizeBytes: 9,
    sha256: createHash('sha256').update('123456789').digest('hex'),
    crcs: [0xe3069283],
  });
  expect(await textOf(blobs, 'a/b/check', 0, 9)).toBe('123456789');
  expect(await textOf(blobs, 'a/b/check', 2, 7)).toBe('34567');
  expect((await blobs.put('empty', pieces())).crcs).toEqual([]);
  const large = Buffer.alloc(2 * chunkBytes + 1, 'x');
  const whole = await blobs.put('large', pieces(large));
  const parts = await blobs.put('large', pieces(large.subarray(0, 5), large.subarray(5)));
  expect(whole).toEqual(parts);
  expect(whole.crcs).toHaveLength(3);
  expect(whole.crcs[0]).toBe(whole.crcs[1]);
});

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

it('a name never leads out of the folder, and a link is no blob', async () => {
  const folder = temporaryFolder();
  const blobs = new FolderBlobs(join(folder, 'store'));
  for (const name of ['..', '../x', 'a/../../x', '/etc/passwd', 'a//b', '', 'a/./b', 'a\0b'])
    await expect(blobs.put(name, pieces('x')), name).rejects.toThrow('is not the name of a blob');
  mkdirSync(join(folder, 'store'));
  writeFileSync(join(folder, 'secret'), 'secret');
  symlinkSync(join(folder, 'secret'), join(folder, 'store', 'link'));
  expect(await blobs.openRead('link')).toBeUndefined();

  // Nor is what lies behind one, wherever it leads; but an operator may keep all of one kind on another disk.
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
  const blobs = await S3Blobs.open(url, 200);
  onTestFinished(() => blobs.close());
  process.env.AWS_ACCESS_KEY_ID = 'test';
  process.env.AWS_SECRET_ACCESS_KEY = 'test-secret';
  await expect(blobs.put('jobs/one/a', pieces('a'))).rejects.toThrow();
  expect(requestCount).toBeGreaterThan(1);
});
