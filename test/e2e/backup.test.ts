import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { JobState, parseJobSpec, ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import type { Backup } from '../../server/dist/backup/backup.js';
import { freshDatabase, hasPostgres } from '../server/postgres.js';
import { freshBucket, hasS3 } from '../server/s3.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

/** A store in a file, even if TEST_STORE says otherwise. */
const inFile = { RELORA_DATABASE_URL: '' };

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

/** Runs a command of the server until it ends. */
function command(args: string[], dataFolder: string, settings: Record<string, string> = {}) {
  const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH, RELORA_DATA_FOLDER: dataFolder, ...settings },
  });
  return { status, stderr };
}

function clientOf(address: string): ReloraClient {
  const client = new ReloraClient({ address });
  onTestFinished(() => client.close());
  return client;
}

function manifestOf(folder: string): Backup {
  return JSON.parse(readFileSync(join(folder, 'backup.json'), 'utf8')) as Backup;
}

/** Files by path and digest, and rows by table: must be the same after a move. */
function contentOf(folder: string) {
  const { files, tables } = manifestOf(folder);
  return {
    files: Object.fromEntries(files.map(({ path, sha256 }) => [path, sha256]).sort()),
    tables: Object.fromEntries(
      tables.filter(({ name }) => name !== 'store_info').map(({ name, sha256 }) => [name, sha256]),
    ),
  };
}

async function weightsOf(client: ReloraClient, job: string): Promise<string> {
  const [artifact] = await client.listArtifacts(job);
  await client.downloadArtifact(artifact!.name, temporaryFolder());
  return artifact!.files.find(({ fileName }) => fileName.endsWith('.safetensors'))!.sha256;
}

test.skipIf(!hasPostgres)(
  'a store moves from a file and a folder to PostgreSQL and S3 while a server works on it, and back, with the same digests',
  async () => {
    const home = temporaryFolder();
    const server = await startServerProcess(home, inFile);
    const client = clientOf(server.grpcAddress);
    const files = [{ content: tinyText(), fileName: 'tiny.txt' }];
    await client.uploadDataset({ datasetId: 'tiny-text', files });
    const done = (await client.createJob(parseJobSpec(tinySpec(200)))).name;
    await client.waitForJob(done);
    const expected = await weightsOf(client, done);
    const half = (await client.createJob(parseJobSpec(tinySpec(200)))).name;
    await expect.poll(async () => (await client.getJob(half)).progress?.step ?? 0).toBeGreaterThan(40);
    await client.pauseJob(half);

    const first = join(temporaryFolder(), 'backup');
    const made = command(['backup', first], home);
    expect(made).toMatchObject({ status: 0 });
    expect(made.stderr).toContain('has 2 jobs, 1 data sets, 0 weights');
    expect((await client.getJob(done)).state).toBe(JobState.SUCCEEDED); // it runs meanwhile
    expect(command(['backup', first], home)).toMatchObject({ status: 1 }); // an existing folder is refused

    const settings = {
      RELORA_DATABASE_URL: await freshDatabase(),
      RELORA_STORE_URL: hasS3 ? await freshBucket() : pathToFileURL(temporaryFolder()).href,
      AWS_ACCESS_KEY_ID: process.env.AWS_ACCESS_KEY_ID!,
      AWS_SECRET_ACCESS_KEY: process.env.AWS_SECRET_ACCESS_KEY!,
    };
    const far = temporaryFolder();
    expect(command(['restore', first], far, settings)).toMatchObject({ status: 0 });
    expect(command(['restore', first], far, settings).stderr).toContain('The store is not empty');
    rmSync(join(far, 'jobs'), { recursive: true }); // only copies: the store has everything
    const second = join(temporaryFolder(), 'backup');
    expect(command(['backup', second], far, settings)).toMatchObject({ status: 0 });
    expect(contentOf(second)).toEqual(contentOf(first));
    expect(manifestOf(second).incarnation).not.toBe(manifestOf(first).incarnation);

    const fleet = clientOf((await startServerProcess(far, settings)).grpcAddress);
    expect(await weightsOf(fleet, done)).toBe(expected);
    await fleet.resumeJob(half);
    await fleet.waitForJob(half);
    expect(await weightsOf(fleet, half)).toBe(expected);

    const back = temporaryFolder();
    expect(command(['restore', second], back)).toMatchObject({ status: 0 });
    const third = join(temporaryFolder(), 'backup');
    expect(command(['backup', third], back)).toMatchObject({ status: 0 });
    expect(contentOf(third)).toEqual(contentOf(first));
    const again = clientOf((await startServerProcess(back, inFile)).grpcAddress);
    await again.resumeJob(half);
    await again.waitForJob(half);
    expect(await weightsOf(again, half)).toBe(expected);
  },
);

test('a backup that is not whole, or not as it was written, is not restored', async () => {
  const home = temporaryFolder();
  expect(command(['migrate'], home)).toMatchObject({ status: 0 });
  const folder = join(temporaryFolder(), 'backup');
  expect(command(['backup', folder], home)).toMatchObject({ status: 0 });
  const text = readFileSync(join(folder, 'tables/jobs.jsonl'), 'utf8');
  writeFileSync(join(folder, 'tables/jobs.jsonl'), `${text}{}\n`);
  const target = temporaryFolder();
  expect(command(['restore', folder], target).stderr).toMatch(/jobs.jsonl has SHA-256 [0-9a-f]+, not /);
  rmSync(join(folder, 'backup.json'));
  expect(command(['restore', folder], target).stderr).toContain('is no whole backup');
  expect(command(['restore'], target)).toMatchObject({ status: 2 });
  expect(existsSync(join(target, 'jobs'))).toBe(false);
});
