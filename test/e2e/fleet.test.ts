import { pathToFileURL } from 'node:url';
import { JobState, parseJobSpec, ReloraClient, type JobEvent } from '@relora/sdk';
import { describe, expect, onTestFinished, test } from 'vitest';
import { freshDatabase, hasPostgres } from '../server/postgres.js';
import { freshBucket, hasS3 } from '../server/s3.js';
import { startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

const leaseSeconds = 1;
// Far more than a trainer can take before the end of its server is noticed.
const stepCount = 300;

const blobStores = [
  { name: 'a folder', url: async () => pathToFileURL(temporaryFolder()).href, skip: !hasPostgres },
  { name: 'S3', url: freshBucket, skip: !hasPostgres || !hasS3 },
].filter(({ skip }) => !skip);

/** Servers of one store, each with a data folder of its own as on a machine of its own, and a client of all. */
async function fleet(count: number, blobsUrl: string, changes: Record<string, string> = {}) {
  const settings = {
    RELORA_DATABASE_URL: await freshDatabase(),
    RELORA_STORE_URL: blobsUrl,
    RELORA_LEASE_SECONDS: String(leaseSeconds),
    AWS_ACCESS_KEY_ID: process.env.AWS_ACCESS_KEY_ID!,
    AWS_SECRET_ACCESS_KEY: process.env.AWS_SECRET_ACCESS_KEY!,
    ...changes,
  };
  const servers: ServerProcess[] = [];
  const folders = Array.from({ length: count }, temporaryFolder);
  for (const folder of folders) servers.push(await startServerProcess(folder, settings));
  const client = new ReloraClient({ address: servers.map(({ grpcAddress }) => grpcAddress).join(',') });
  onTestFinished(() => client.close());
  return { settings, servers, folders, client };
}

/** The server that runs a job: its log says when it started a trainer. */
function runnerOf(servers: readonly ServerProcess[], job: string): ServerProcess {
  const runners = servers.filter(({ logged }) =>
    logged.some(({ msg, jobId }) => msg === 'A trainer is started' && `jobs/${String(jobId)}` === job),
  );
  return runners.at(-1)!;
}

async function uploaded(client: ReloraClient): Promise<void> {
  const files = [{ content: tinyText(), fileName: 'tiny.txt' }];
  await client.uploadDataset({ datasetId: 'tiny-text', files });
}

async function weightsOf(client: ReloraClient, job: string): Promise<string> {
  const [artifact] = await client.listArtifacts(job);
  await client.downloadArtifact(artifact!.name, temporaryFolder()); // checks every hash
  return artifact!.files.find(({ fileName }) => fileName.endsWith('.safetensors'))!.sha256;
}

describe.each(blobStores)('three servers over PostgreSQL and $name', ({ url }) => {
  test('a job whose server is killed is finished by another with the same weights, seen through without a gap', async () => {
    const { servers, client } = await fleet(3, await url());
    await uploaded(client);
    const undisturbed = (await client.createJob(parseJobSpec(tinySpec(stepCount)))).name;
    await client.waitForJob(undisturbed);
    const expected = await weightsOf(client, undisturbed);

    const { name } = await client.createJob(parseJobSpec(tinySpec(stepCount)));
    const events: JobEvent[] = [];
    let killed: ServerProcess | undefined;
    for await (const event of client.watch(name)) {
      events.push(event);
      if (killed !== undefined || event.kind !== 'checkpoint' || event.checkpoint.step < 20) continue;
      killed = runnerOf(servers, name);
      killed.process.kill('SIGKILL');
    }
    expect(killed).toBeDefined();
    expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
    const states = events.flatMap((event) => (event.kind === 'state' ? [event.state.to] : []));
    expect(states).toEqual([
      JobState.QUEUED,
      JobState.STARTING,
      JobState.RUNNING,
      JobState.QUEUED,
      JobState.STARTING,
      JobState.RUNNING,
      JobState.SUCCEEDED,
    ]);
    const resumed = events.find((event) => event.kind === 'step' && event.attempt === 2);
    expect(resumed?.kind === 'step' && resumed.step.step).toBeGreaterThanOrEqual(20);
    expect(await weightsOf(client, name)).toBe(expected);
  });

  test('each answers for jobs of the others: pause, resume, text, export of the present state, cancel', async () => {
    const { servers, client } = await fleet(2, await url());
    await uploaded(client);
    const spec = parseJobSpec({ ...tinySpec(100_000), checkpoint: { every_step_count: 20 } });
    const { name } = await client.createJob(spec);
    await expect
      .poll(async () => (await client.getJob(name)).progress?.checkpointStep ?? 0)
      .toBeGreaterThan(0);
    const runner = runnerOf(servers, name);
    const other = new ReloraClient({ address: servers.find((server) => server !== runner)!.grpcAddress });
    onTestFinished(() => other.close());

    let text = '';
    for await (const piece of other.generate(name, { prompt: 'Line', tokenCountMax: 4 })) text += piece.text;
    expect(text).not.toBe('');
    const exported = await other.exportWeights(name);
    const artifact = await other.waitForArtifact(exported.name);
    await other.downloadArtifact(artifact.name, temporaryFolder());
    expect((await other.pauseJob(name)).state).toBe(JobState.PAUSED);
    await other.resumeJob(name);
    await expect.poll(async () => (await other.getJob(name)).state).toBe(JobState.RUNNING);
    expect((await other.cancelJob(name)).state).toBe(JobState.CANCELLED);
  });
});

test.skipIf(!hasPostgres)('a fleet does not start on what is not its own, or not to be had', async () => {
  const blobs = pathToFileURL(temporaryFolder()).href;
  const { settings, folders } = await fleet(1, blobs);
  const start = async (changes: Record<string, string>): Promise<ServerProcess> =>
    await startServerProcess(temporaryFolder(), { ...settings, ...changes });
  await expect(start({ RELORA_DATABASE_URL: await freshDatabase() })).rejects.toThrow(
    /belongs to another database/,
  );
  await expect(start({ RELORA_STORE_URL: '' })).rejects.toThrow(
    /RELORA_STORE_URL must be set with RELORA_DATABASE_URL/,
  );
  await expect(start({ RELORA_STORE_URL: 'http://bucket' })).rejects.toThrow(
    /RELORA_STORE_URL must be file:\/\/\/folder, or s3/,
  );
  await expect(start({ RELORA_DATABASE_URL: 'mysql://host/db' })).rejects.toThrow(
    /RELORA_DATABASE_URL must be postgres/,
  );
  await expect(start({ RELORA_DATABASE_URL: 'postgres://nobody@127.0.0.1:1/x' })).rejects.toThrow(
    /cannot be used/,
  );
  await expect(start({ RELORA_STORE_URL: 'file:///proc/none' })).rejects.toThrow(/is no folder: mount it/);
  await expect(start({ RELORA_STORE_URL: 'file:///sys/kernel' })).rejects.toThrow(
    /may write, read, list and delete/,
  );
  await expect(startServerProcess(folders[0]!, settings)).rejects.toThrow(
    /is in use by the server with pid \d+: each server needs a RELORA_DATA_FOLDER of its own/,
  );
  if (!hasS3) return;
  const bucket = await freshBucket();
  const other = bucket.replace('//bucket-', '//missing-');
  await expect(start({ RELORA_STORE_URL: other })).rejects.toThrow(/NoSuchBucket/);
  await expect(start({ RELORA_STORE_URL: bucket, AWS_SECRET_ACCESS_KEY: 'wrong' })).rejects.toThrow(
    /SignatureDoesNotMatch|AccessDenied/,
  );
});
