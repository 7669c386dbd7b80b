import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { JobState, parseJobSpec, type JobEvent } from '@relora/sdk';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { freshDatabase, hasPostgres } from '../server/postgres.js';
import { freshBucket, hasS3 } from '../server/s3.js';
import { blobStores, clientOf, fleet, runnerOf, uploaded, weightsOf } from './serverFleet.js';
import { startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';

// Far more than a trainer can do before it notices the end of its server.
const stepCount = 300;

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
    const other = clientOf(servers.find((server) => server !== runner)!.grpcAddress);

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
  const { settings, folders, servers } = await fleet(1, blobs);
  expect(servers[0]!.logged.map(({ msg }) => msg)).toContainEqual(
    expect.stringMatching(/^PostgreSQL has no synchronous standby/),
  );
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
  for (const url of ['mysql://host/db', 'postgres:/host/db', '::'])
    await expect(start({ RELORA_DATABASE_URL: url })).rejects.toThrow(
      `RELORA_DATABASE_URL must be postgres://user@host:port/database, not "${url}"`,
    );
  const clock = join(temporaryFolder(), 'clock');
  writeFileSync(clock, '3600000');
  const preload = fileURLToPath(new URL('../faults/clockOffset.cjs', import.meta.url));
  await expect(start({ NODE_OPTIONS: `--require ${preload}`, TEST_CLOCK_FILE: clock })).rejects.toThrow(
    /clock of this machine is 3600 s ahead of that of the database: set it right/,
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
  const newer = new pg.Client({ connectionString: settings.RELORA_DATABASE_URL });
  await newer.connect();
  await newer.query('update schema_version set version = version + 1');
  await newer.end();
  await expect(start({})).rejects.toThrow(
    /database has schema \d+, this server knows \d+: use the newer server that wrote it/,
  );
  if (!hasS3) return;
  const bucket = await freshBucket();
  await fleet(1, bucket);
  await expect(
    start({ RELORA_STORE_URL: bucket, RELORA_DATABASE_URL: await freshDatabase() }),
  ).rejects.toThrow(/belongs to another database .*: name another RELORA_STORE_URL/);
  const other = bucket.replace('//bucket-', '//missing-');
  const alone = { RELORA_DATABASE_URL: await freshDatabase() };
  await expect(start({ ...alone, RELORA_STORE_URL: other })).rejects.toThrow(/NoSuchBucket/);
  await expect(start({ ...alone, RELORA_STORE_URL: bucket, AWS_SECRET_ACCESS_KEY: 'wrong' })).rejects.toThrow(
    /SignatureDoesNotMatch|AccessDenied/,
  );
});
