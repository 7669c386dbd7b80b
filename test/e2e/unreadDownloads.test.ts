import { ReloraClient, parseJobSpec } from '@relora/sdk';
import { ArtifactServiceDefinition, DownloadArtifactRequest } from '@relora/sdk/contract';
import { expect, onTestFinished, test } from 'vitest';
import { beginCall, framed, rawSession } from '../server/rawCalls.js';
import { startServerProcess } from './serverProcess.js';
import { clientsOf } from './watchedJob.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

const downloadsMax = 40;
/** Memory of a download that is not read: docs/configuration.md has it at RELORA_DOWNLOADS_MAX. */
const unreadBytesMax = 5e6;

test('downloads that nobody reads hold a few megabytes each, and one too many is refused by name', async () => {
  const server = await startServerProcess(temporaryFolder(), { RELORA_DOWNLOADS_MAX: String(downloadsMax) });
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  const { artifact, file } = await largeFile(client);
  expect(file.sizeBytes).toBeGreaterThan(10 * unreadBytesMax);

  const sentBytes = async () => await metric(server.httpAddress, 'relora_artifact_sent_bytes_total');
  const residentBytes = async () => await metric(server.httpAddress, 'process_resident_memory_bytes');
  const residentBefore = await residentBytes();
  const request = DownloadArtifactRequest.encode({
    name: artifact,
    fileName: file.fileName,
    offsetBytes: 0,
  }).finish();
  // Each on a separate connection, since downloads on one connection share its flow-control window.
  const beginUnread = async () => {
    const session = await rawSession(server.grpcAddress);
    const call = beginCall(session, `/${ArtifactServiceDefinition.fullName}/DownloadArtifact`);
    call.pause();
    call.end(framed(Buffer.from(request)));
    await new Promise((resolve) => call.once('response', resolve));
  };
  const unread = downloadsMax - 1;
  for (let count = 0; count < unread; count++) await beginUnread();

  // A download that is read completes meanwhile, in which time the others fill their buffers.
  await client.downloadArtifact(artifact, temporaryFolder());
  expect((await sentBytes()) - file.sizeBytes).toBeLessThan(unread * unreadBytesMax);
  expect((await residentBytes()) - residentBefore).toBeLessThan((unread + 10) * unreadBytesMax);

  await beginUnread();
  const { artifacts } = clientsOf(server.grpcAddress);
  const refused = async () => {
    for await (const _ of artifacts.downloadArtifact({ name: artifact, fileName: file.fileName }));
  };
  await expect(refused()).rejects.toMatchObject({
    message: expect.stringContaining(
      `All ${downloadsMax} downloads that the server allows are open`,
    ) as string,
  });
});

/** A 60 MB weights file of a job of one step. */
async function largeFile(client: ReloraClient) {
  await client.uploadDataset({
    datasetId: 'tiny-text',
    files: [{ fileName: 'tiny.txt', content: tinyText() }],
    spec: { tokenizer: { bytes: {} }, heldOutShare: 0.1 },
  });
  const spec = tinySpec(1);
  Object.assign(spec.model.config, { hidden_size: 256, vocab_size: 30_000 });
  const { name } = await client.createJob(
    parseJobSpec({ ...spec, kind: 'JOB_KIND_FULL_RANK', warm_start: undefined, adapter: undefined }),
  );
  await client.waitForJob(name);
  const [artifact] = await client.listArtifacts(name);
  const file = artifact!.files.find(({ fileName }) => fileName === 'model.safetensors')!;
  return { artifact: artifact!.name, file };
}

async function metric(httpAddress: string, name: string): Promise<number> {
  const text = await (await fetch(`http://${httpAddress}/metrics`)).text();
  return Number(
    text
      .split('\n')
      .find((line) => line.startsWith(`${name} `))!
      .slice(name.length + 1),
  );
}
