import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ExportFormat, JobState, parseJobSpec, ReloraClient, type JobEvent } from '@relora/sdk';
import { expect } from 'vitest';
import { startServerProcess, type ServerProcess } from '../e2e/serverProcess.js';
import { tinySpec, tinyText } from '../e2e/tinyJob.js';
import { freshBucket, s3Server } from '../server/s3.js';
import type { PostgresPair } from './postgresPair.js';
import type { Random } from './random.js';
import { s3Proxy, type S3Proxy } from './s3Proxy.js';

/** Enough for a warm start and several merges; seconds long. */
export const stepCount = 60;
export const leaseMs = 2000;

/** What is undone when a trial has ended, the last first. */
export type Ends = (() => Promise<void> | void)[];

/** Servers of one store that can be killed, stopped and started again, each with its own folder, and a client of all. */
export class World {
  readonly servers: { folder: string; running: ServerProcess }[] = [];
  client!: ReloraClient;
  s3: S3Proxy | undefined;

  private constructor(
    private readonly settings: Record<string, string>,
    private readonly ends: Ends,
  ) {}

  /** One server with a file and a folder, as it is by default. */
  static async alone(ends: Ends, settings: Record<string, string> = {}): Promise<World> {
    const world = new World({ ...common, ...settings, RELORA_DATABASE_URL: '' }, ends);
    await world.add();
    world.connect();
    return world;
  }

  /** Several over PostgreSQL and an S3 server. */
  static async fleet(
    ends: Ends,
    random: Random,
    count: number,
    postgres: PostgresPair,
    settings: Record<string, string> = {},
  ): Promise<World> {
    const { port } = await s3Server();
    const s3 = await s3Proxy(port, random);
    ends.push(async () => await s3.close());
    const name = `faults_${process.pid}_${Date.now()}_${Math.floor(random() * 1e6)}`;
    const world = new World(
      {
        ...common,
        RELORA_DATABASE_URL: await postgres.database(name),
        RELORA_STORE_URL: (await freshBucket()).replace(`:${port}`, `:${s3.port}`),
        RELORA_LEASE_SECONDS: String(leaseMs / 1000),
        AWS_ACCESS_KEY_ID: process.env.AWS_ACCESS_KEY_ID!,
        AWS_SECRET_ACCESS_KEY: process.env.AWS_SECRET_ACCESS_KEY!,
        ...settings,
      },
      ends,
    );
    world.s3 = s3;
    for (let index = 0; index < count; index++) await world.add();
    world.connect();
    return world;
  }

  private async add(): Promise<void> {
    const folder = mkdtempSync(join(tmpdir(), 'relora-faults-'));
    this.ends.push(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }));
    this.servers.push({ folder, running: await this.start(folder) });
  }

  private async start(folder: string, address = '127.0.0.1:0'): Promise<ServerProcess> {
    const entries = Object.entries(this.settings).map(([name, value]) => [
      name,
      value.replace('{folder}', folder),
    ]);
    const settings = {
      ...(Object.fromEntries(entries) as Record<string, string>),
      RELORA_GRPC_ADDRESS: address,
    };
    return await startServerProcess(folder, settings, (stop) => this.ends.push(stop));
  }

  private connect(): void {
    const address = this.servers.map(({ running }) => running.grpcAddress).join(',');
    this.client = new ReloraClient({ address, deadlineMs: 300_000 });
    this.ends.push(() => this.client.close());
  }

  /** `kill -9`, and a start at the same address. */
  async killServer(index: number): Promise<void> {
    const server = this.servers[index]!;
    server.running.process.kill('SIGKILL');
    await server.running.exited;
    server.running = await this.start(server.folder, server.running.grpcAddress);
  }

  /** Which server runs a job, by what its log says; -1 while none does. */
  runnerOf(job: string): number {
    return this.servers.findIndex(({ running }) => this.trainersOf(running, job).length > 0);
  }

  /** Pids of trainers that run now, of one job or of all. */
  trainerPids(): number[] {
    return this.servers.flatMap(({ running }) => {
      const { pid } = running.process;
      try {
        const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
        return children === '' ? [] : children.split(' ').map(Number);
      } catch {
        return []; // it is gone
      }
    });
  }

  private trainersOf({ logged }: ServerProcess, job: string): unknown[] {
    return logged.filter(
      ({ msg, jobId }) => msg === 'A trainer is started' && `jobs/${String(jobId)}` === job,
    );
  }
}

const common: Record<string, string> = {
  RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1000',
  RELORA_LOG_LEVEL: 'info',
};

export interface Result {
  weights: string;
  gguf: string;
}

let isCounted = 0;

/**
 * The whole way of a person with a job: upload, create, watch, export, download. Fails where anything that was acknowledged is lost,
 * doubled, out of order or of other bytes than in an undisturbed run.
 */
export async function wholeWay(
  { client }: World,
  ends: Ends,
  expected: Result | null,
  { onJob = () => {} }: { onJob?: (name: string) => void } = {},
): Promise<Result> {
  const datasetId = `tiny-text-${isCounted++}`;
  const files = [{ content: tinyText(), fileName: 'tiny.txt' }];
  await client.uploadDataset({ datasetId, files });
  const spec = parseJobSpec({ ...tinySpec(stepCount), dataset: `datasets/${datasetId}` });
  const { name } = await client.createJob(spec);
  onJob(name);
  const events: JobEvent[] = [];
  for await (const event of client.watch(name)) events.push(event);
  const sequences = events.map(({ sequence }) => sequence);
  expect(sequences).toEqual(sequences.map((_, index) => index + 1));
  expect((await client.getJob(name)).state, events.at(-1)?.kind).toBe(JobState.SUCCEEDED);
  checkSteps(events);
  // The journal as it is at the end is what was seen of it on the way.
  const again: JobEvent[] = [];
  for await (const event of client.watch(name)) again.push(event);
  expect(again).toEqual(events);

  const folder = mkdtempSync(join(tmpdir(), 'relora-faults-'));
  ends.push(() => rmSync(folder, { recursive: true, force: true }));
  const [artifact] = await client.listArtifacts(name);
  await client.downloadArtifact(artifact!.name, join(folder, 'weights')); // checks every hash
  const weights = artifact!.files.find(({ fileName }) => fileName.endsWith('.safetensors'))!.sha256;
  const exported = await client.exportWeights(name, { format: ExportFormat.GGUF });
  const gguf = await client.waitForArtifact(exported.name);
  await client.downloadArtifact(gguf.name, join(folder, 'gguf'));
  const result = { weights, gguf: withoutName(join(folder, 'gguf', gguf.files[0]!.fileName), name) };
  if (expected !== null) expect(result).toEqual(expected);
  return result;
}

/** Steps go up by one within an attempt, and attempts never go back. */
function checkSteps(events: readonly JobEvent[]): void {
  let attempt = 0;
  let next: number | null = null;
  for (const event of events) {
    if (event.attempt > 0) {
      expect(event.attempt).toBeGreaterThanOrEqual(attempt);
      if (event.attempt > attempt) next = null;
      attempt = event.attempt;
    }
    if (event.kind !== 'step') continue;
    if (next !== null) expect(event.step.step).toBe(next);
    next = event.step.step + 1;
  }
  expect(next).toBeGreaterThanOrEqual(stepCount);
}

/** A GGUF file names its job. */
function withoutName(path: string, job: string): string {
  const bytes = readFileSync(path);
  const text = Buffer.from(job.replace('jobs/', ''));
  for (let at = bytes.indexOf(text); at >= 0; at = bytes.indexOf(text)) bytes.fill(0, at, at + text.length);
  return createHash('sha256').update(bytes).digest('hex');
}
