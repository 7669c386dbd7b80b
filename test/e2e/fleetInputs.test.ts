import { createHash, randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatasetState, JobState, parseJobSpec } from '@relora/sdk';
import { expect, test } from 'vitest';
import { hasPostgres } from '../server/postgres.js';
import { blobStores, clientOf, fleet, uploaded } from './serverFleet.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';
import { clientsOf } from './watchedJob.js';

const partBytes = 65_536;
const url = blobStores.at(-1)?.url ?? (async () => '');

/** Text without repetition, so that all of its parts differ. */
function longText(byteCount: number): string {
  return randomBytes(byteCount / 2)
    .toString('hex')
    .replace(/(.{70})/g, '$1\n')
    .slice(0, byteCount);
}

test.skipIf(!hasPostgres)('an upload whose server is killed is continued at another one', async () => {
  const { servers } = await fleet(2, await url(), { RELORA_UPLOAD_PART_BYTES: String(partBytes) });
  const [one, two] = servers as [(typeof servers)[0], (typeof servers)[0]];
  const content = longText(16 << 20);
  const options = { datasetId: 'long-text', files: [{ content, fileName: 'long.txt' }] };
  const second = clientOf(two.grpcAddress);
  const stop = new AbortController();
  const broken = clientOf(one.grpcAddress)
    .uploadDataset({ ...options, signal: stop.signal })
    .then(
      () => 'done',
      () => 'broken',
    );
  const received = async (): Promise<number> => {
    const found = await second.getDataset('datasets/long-text').catch(() => undefined);
    return found?.files[0]!.receivedBytes ?? 0;
  };
  await expect.poll(received, { interval: 20 }).toBeGreaterThan(1 << 20);
  one.process.kill('SIGKILL');
  await one.exited;
  stop.abort();
  expect(await broken).toBe('broken');
  const receivedBytes = await received();
  expect(receivedBytes).toBeLessThan(content.length);
  const ratios: number[] = [];
  const dataset = await second.uploadDataset({
    ...options,
    onProgress: ({ phase, ratio }) => phase === 'uploading' && ratios.push(ratio),
  });
  expect(dataset.state).toBe(DatasetState.READY);
  // Continued where the other server had ended.
  expect(ratios[0]! * content.length).toBeGreaterThan(receivedBytes);
  const again = await one.again();
  expect(
    await clientOf(again.grpcAddress).previewDataset('datasets/long-text', { tokenCount: 4 }),
  ).toHaveLength(4);
});

test.skipIf(!hasPostgres)('wrong bytes that a part has are found, and sent again', async () => {
  const { servers } = await fleet(2, await url(), { RELORA_UPLOAD_PART_BYTES: String(partBytes) });
  const content = Buffer.from(longText(1 << 18));
  const sha256 = createHash('sha256').update(content).digest('hex');
  const header = {
    datasetId: 'long-text',
    files: [{ fileName: 'long.txt', sizeBytes: content.length, sha256 }],
    spec: { tokenizer: { bytes: {} }, heldOutShare: 0.1 },
  };
  async function* messages(from: number, to: number, data: Buffer) {
    yield { header };
    for (let offset = from; offset < to; offset += 1 << 15)
      yield {
        chunk: {
          fileIndex: 0,
          offsetBytes: offset,
          data: data.subarray(offset, Math.min(to, offset + (1 << 15))),
        },
      };
  }
  const [one, two] = servers.map(({ grpcAddress }) => clientsOf(grpcAddress).datasets);
  const wrong = Buffer.from(content);
  wrong[100]! ^= 1;
  const half = content.length / 2;
  await expect(one!.uploadDataset(messages(0, half, wrong))).rejects.toThrow(/ended early/);
  const received = async (client: typeof one) =>
    (await client!.getDataset({ name: 'datasets/long-text' })).dataset!.files[0]!.receivedBytes;
  expect(await received(two)).toBe(half);
  await expect(two!.uploadDataset(messages(half, content.length, content))).rejects.toThrow(/SHA-256/);
  expect(await received(one)).toBe(0);
  // This server's half is the wrong one; what the other servers have counts.
  await expect(two!.uploadDataset(messages(0, half, content))).rejects.toThrow(/ended early/);
  const { dataset } = await one!.uploadDataset(messages(half, content.length, content));
  expect(dataset!.state).toBe(DatasetState.PREPARING);
});

test.skipIf(!hasPostgres)(
  'files that one server has are taken into the store: the others need no such path',
  async () => {
    const allowed = temporaryFolder();
    const { servers, client } = await fleet(2, await url(), {}, (index) => ({
      RELORA_ALLOWED_FOLDERS: index === 0 ? allowed : temporaryFolder(),
    }));
    const one = clientsOf(servers[0]!.grpcAddress);
    const path = join(allowed, 'text.txt');
    writeFileSync(path, tinyText());
    async function* messages() {
      yield { header: { datasetId: 'on-server', files: [{ serverPath: path }] } };
    }
    const { dataset } = await one.datasets.uploadDataset(messages());
    rmSync(path);
    expect(dataset!.files[0]).toMatchObject({ serverPath: path, receivedBytes: tinyText().length });
    await expect
      .poll(async () => (await client.getDataset('datasets/on-server')).state)
      .toBe(DatasetState.READY);
    await expect(clientsOf(servers[1]!.grpcAddress).datasets.uploadDataset(messages())).rejects.toThrow(
      /RELORA_ALLOWED_FOLDERS/,
    );

    await uploaded(client);
    const first = await client.createJob(parseJobSpec(tinySpec(20)));
    await client.waitForJob(first.name);
    const folder = join(allowed, 'a-model');
    const [artifact] = await client.listArtifacts(first.name);
    await client.downloadArtifact(artifact!.name, folder);
    const spec = parseJobSpec({
      ...tinySpec(20),
      model: { base_weights: { path: folder } },
      dataset: 'datasets/on-server',
    });
    const direct = clientOf(servers[0]!.grpcAddress);
    const { name, spec: stored } = await direct.createJob(spec);
    expect(stored!.model!.baseWeights!.weights).toMatch(/^weights\/path-[0-9a-f]{32}$/);
    // The same folder is imported only once.
    const again = await direct.createJob(spec);
    expect(again.spec!.model!.baseWeights).toEqual(stored!.model!.baseWeights);
    rmSync(folder, { recursive: true });
    for (const job of [name, again.name])
      expect((await client.waitForJob(job)).state).toBe(JobState.SUCCEEDED);
    const listed: string[] = [];
    for await (const { displayName } of client.listWeights()) listed.push(displayName);
    expect(listed).toEqual(['a-model']);
  },
);
