import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ArtifactState, ExportFormat } from '@relora/sdk';
import type { DownloadArtifactRequest } from '@relora/sdk/contract';
import { expect, onTestFinished, test } from 'vitest';
import { FileDigest } from '../../sdk/dist/fileDigest.js';
import { temporaryFolder } from '../e2e/tinyJob.js';
import { artifactOf, brokenServer, cutOff, reset, unavailable } from './brokenServer.js';

const bytes = randomBytes(100_000);
const pieceBytes = 16_384;
const contents = { 'a.bin': bytes, 'a.bin.part': Buffer.from('a file of this name is fine') };
const artifact = artifactOf(contents);

/** A server that sends each file in chunks; `fault` may throw before a chunk. */
async function serve(
  fault: (offset: number, request: DownloadArtifactRequest) => void = () => {},
  sent = contents,
) {
  return await brokenServer({
    listArtifacts: async () => ({ artifacts: [artifact] }),
    async *downloadArtifact(request) {
      const file = sent[request.fileName as keyof typeof contents];
      for (let offset = request.offsetBytes; offset < file.length; offset += pieceBytes) {
        fault(offset, request);
        yield { offsetBytes: offset, data: file.subarray(offset, offset + pieceBytes) };
      }
    },
  });
}

function expectWhole(folder: string): void {
  expect(readdirSync(folder).sort()).toEqual(Object.keys(contents));
  for (const [name, content] of Object.entries(contents))
    expect(readFileSync(join(folder, name)).equals(content)).toBe(true);
}

test.each([
  ['UNAVAILABLE', unavailable],
  ['a reset', reset],
  ['the cut-off of a slow reader', cutOff],
])('resumes where the stream broke: %s', async (_, error) => {
  const opened: number[] = [];
  const client = await serve((offset, request) => {
    if (offset === request.offsetBytes) opened.push(offset);
    // One chunk per connection, more connections than retries are allowed: progress resets the count.
    else throw error();
  });
  const folder = temporaryFolder();
  const received: number[] = [];
  const onProgress = ({ receivedBytes }: { receivedBytes: number }) => received.push(receivedBytes);
  const paths = await client.downloadArtifact('jobs/job-1', folder, { onProgress });
  expect(paths).toEqual([join(folder, 'a.bin'), join(folder, 'a.bin.part')]);
  expectWhole(folder);
  expect(opened.slice(0, 7)).toEqual([0, 1, 2, 3, 4, 5, 6].map((piece) => piece * pieceBytes));
  expect(received.at(-1)).toBe(artifact.sizeBytes);
});

test('a later process resumes where an earlier one stopped', async () => {
  const folder = temporaryFolder();
  const part = `a.bin.${artifact.files[0]!.sha256.slice(0, 12)}.part`;
  writeFileSync(join(folder, part), bytes.subarray(0, 70_000));
  const opened: number[] = [];
  const client = await serve((offset, { fileName }) => void (fileName === 'a.bin' && opened.push(offset)));
  await client.downloadArtifact('jobs/job-1', folder);
  expect(opened[0]).toBe(70_000);
  expectWhole(folder);
});

test('of a job without a model in Hugging Face layout, the newest finished artifact is downloaded', async () => {
  const { GGUF, PEFT, HUGGING_FACE } = ExportFormat;
  const { READY, PENDING } = ArtifactState;
  const of = (id: string, format: ExportFormat, state: ArtifactState) => ({
    ...artifactOf({ [id]: bytes }),
    name: `jobs/job-1/artifacts/${id}`,
    format,
    state,
  });
  const artifacts = [of('a', PEFT, READY), of('b', GGUF, READY), of('c', HUGGING_FACE, PENDING)];
  const client = await brokenServer({
    listArtifacts: async () => ({ artifacts }),
    async *downloadArtifact() {
      yield { offsetBytes: 0, data: bytes };
    },
  });
  const folder = temporaryFolder();
  expect(await client.downloadArtifact('jobs/job-1', folder)).toEqual([join(folder, 'b')]);
  artifacts.unshift(of('d', HUGGING_FACE, READY));
  expect(await client.downloadArtifact('jobs/job-1', folder)).toEqual([join(folder, 'd')]);
});

test('two downloads into one folder give one right file', async () => {
  const client = await serve();
  const folder = temporaryFolder();
  await Promise.all([1, 2, 3].map(() => client.downloadArtifact('jobs/job-1', folder)));
  expectWhole(folder);
});

test('what is there already is not fetched again', async () => {
  let pieces = 0;
  const client = await serve(() => void pieces++);
  const folder = temporaryFolder();
  await client.downloadArtifact('jobs/job-1', folder);
  const before = pieces;
  await client.downloadArtifact('jobs/job-1', folder);
  expect(pieces).toBe(before);
});

test('wrong bytes are refused and removed', async () => {
  const wrong = Buffer.from(bytes);
  wrong[50_000]! ^= 1;
  const client = await serve(undefined, { ...contents, 'a.bin': wrong });
  const folder = temporaryFolder();
  await expect(client.downloadArtifact('jobs/job-1', folder)).rejects.toMatchObject({
    name: 'IntegrityError',
    code: 'DATA_LOSS',
  });
  expect(readdirSync(folder)).toEqual([]);
});

test('a file that came wrong a few times is fetched again, from its beginning', async () => {
  const wrong = Buffer.from(bytes);
  wrong[50_000]! ^= 1;
  const sent = { ...contents, 'a.bin': wrong };
  const opened: number[] = [];
  const client = await serve((offset, { fileName, offsetBytes }) => {
    if (fileName !== 'a.bin') return;
    if (offset === offsetBytes) opened.push(offset);
    if (opened.length === 4) sent['a.bin'] = bytes; // for the next stream
  }, sent);
  const folder = temporaryFolder();
  await client.downloadArtifact('jobs/job-1', folder);
  expect(opened).toEqual([0, 0, 0, 0, 0]);
  expectWhole(folder);
});

/** Long enough to be hashed in a thread during the transfer. */
const long = randomBytes(9 << 20);

async function serveLong(sent: Buffer, fault: (offset: number) => void = () => {}) {
  return await brokenServer({
    listArtifacts: async () => ({ artifacts: [artifactOf({ 'long.bin': long })] }),
    async *downloadArtifact({ offsetBytes }) {
      for (let offset = offsetBytes; offset < sent.length; offset += 1 << 18) {
        fault(offset);
        yield { offsetBytes: offset, data: sent.subarray(offset, offset + (1 << 18)) };
      }
    },
  });
}

test('a long file is hashed beside its transfer, also one that broke in the middle', async () => {
  let breaks = 0;
  const client = await serveLong(long, (offset) => {
    if (offset > 5 << 20 && breaks++ < 2) throw unavailable();
  });
  const folder = temporaryFolder();
  await client.downloadArtifact('jobs/job-1', folder);
  expect(breaks).toBeGreaterThan(2);
  expect(readdirSync(folder)).toEqual(['long.bin']);
  expect(readFileSync(join(folder, 'long.bin')).equals(long)).toBe(true);
});

test('a file that cannot be hashed beside its transfer is an error at its end, if it is not gone', async () => {
  const folder = temporaryFolder();
  const gone = new FileDigest(join(folder, 'gone'));
  expect(await gone.finish(0)).toBeUndefined();
  const unreadable = new FileDigest(folder);
  const exited = new Promise((resolve) => unreadable['worker'].once('exit', resolve));
  unreadable.reached(8 << 20);
  await exited;
  await expect(unreadable.finish(8 << 20)).rejects.toMatchObject({ code: 'EISDIR' });
});

test.each([0, 4 << 20, (9 << 20) - 1])('a wrong byte at %i of a long file is found', async (place) => {
  const wrong = Buffer.from(long);
  wrong[place]! ^= 1;
  const client = await serveLong(wrong);
  const folder = temporaryFolder();
  await expect(client.downloadArtifact('jobs/job-1', folder)).rejects.toMatchObject({
    name: 'IntegrityError',
  });
  expect(readdirSync(folder)).toEqual([]);
});

test('bytes from another place than asked for are refused', async () => {
  const client = await brokenServer({
    listArtifacts: async () => ({ artifacts: [artifact] }),
    async *downloadArtifact() {
      yield { offsetBytes: 7, data: bytes.subarray(7, 20) };
    },
  });
  const downloading = client.downloadArtifact('jobs/job-1', temporaryFolder());
  await expect(downloading).rejects.toThrow('a.bin: byte 0 was expected, 13 bytes from 7 came');
});

test('a server that sends nothing is given up', async () => {
  let calls = 0;
  const client = await brokenServer(
    {
      listArtifacts: async () => ({ artifacts: [artifact] }),
      async *downloadArtifact({ offsetBytes }) {
        calls++;
        yield { offsetBytes };
      },
    },
    { deadlineMs: 200 },
  );
  await expect(client.downloadArtifact('jobs/job-1', temporaryFolder())).rejects.toThrow(
    'a.bin ended at byte 0 of 100000',
  );
  expect(calls).toBeGreaterThan(5);
});

test.each(['con', 'aux.txt', 'LPT1', 'what?.bin', 'weights. '])(
  'a file named %j, which Windows takes for something else, is refused there',
  async (fileName) => {
    const { platform } = process;
    onTestFinished(() => void Object.defineProperty(process, 'platform', { value: platform }));
    Object.defineProperty(process, 'platform', { value: 'win32' });
    const file = { ...artifact.files[0]!, fileName };
    const client = await brokenServer({
      listArtifacts: async () => ({ artifacts: [{ ...artifact, files: [file] }] }),
    });
    const folder = temporaryFolder();
    await expect(client.downloadArtifact('jobs/job-1', folder)).rejects.toMatchObject({
      name: 'IntegrityError',
    });
    expect(readdirSync(folder)).toEqual([]);
  },
);

test.each(['../evil', 'a/../b', 'a/b/c/d/e/f', '/a', 'C:evil', '..', '', 'line\nbreak'])(
  'a file named %j is refused before anything is written',
  async (fileName) => {
    const file = { ...artifact.files[0]!, fileName };
    const client = await brokenServer({
      listArtifacts: async () => ({ artifacts: [{ ...artifact, files: [file] }] }),
    });
    const folder = temporaryFolder();
    await expect(client.downloadArtifact('jobs/job-1', folder)).rejects.toMatchObject({
      name: 'IntegrityError',
    });
    expect(readdirSync(folder)).toEqual([]);
  },
);
