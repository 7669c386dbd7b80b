import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ReloraClient } from '@relora/sdk';
import { onTestFailed } from 'vitest';
import { startServerProcess, type ServerProcess } from '../e2e/serverProcess.js';
import { freshBucket, s3Server } from '../server/s3.js';
import type { Hosts } from './hosts.js';
import type { PostgresPair } from './postgresPair.js';
import { childrenOf, isAwake } from './processes.js';
import type { Random } from './random.js';
import { s3Proxy, type S3Proxy } from './s3Proxy.js';

export const leaseMs = 2000;

/** How long a client repeats requests: trials may run at the lowest priority on a busy machine. */
export const patientMs = 1_800_000;

/** Cleanup after a trial, in reverse order. */
export type Ends = (() => Promise<void> | void)[];

interface Served {
  folder: string;
  index: number;
  running: ServerProcess;
}

/** Servers with a common store that can be killed, stopped and started again, each with its own folder, and a client of all of them. */
export class World {
  readonly servers: Served[] = [];
  client!: ReloraClient;
  s3: S3Proxy | undefined;
  /** With several servers: the name of their database, and the folder that is their bucket. */
  shared: { database: string; bucketFolder: string } | undefined;
  /**
   * Whether a server may exit on a fault that it cannot handle, and is then started again, as by systemd; otherwise it must never exit by
   * itself.
   */
  mayEnd = false;
  private isOver = false;
  private readonly problems: string[] = [];
  private readonly killed = new Set<ServerProcess>();
  private readonly starting = new Set<Promise<ServerProcess>>();
  private readonly stops: (() => Promise<void>)[] = [];

  private constructor(
    private readonly settings: Record<string, string>,
    private readonly ends: Ends,
    private readonly hosts?: Hosts,
  ) {}

  /** One server with a file and a folder, as by default. */
  static async alone(ends: Ends, settings: Record<string, string> = {}): Promise<World> {
    const world = new World({ ...common, ...settings, RELORA_DATABASE_URL: '' }, ends);
    await world.addAll(1);
    return world;
  }

  /** Several servers with PostgreSQL and an S3 server. */
  static async fleet(
    ends: Ends,
    random: Random,
    count: number,
    postgres: PostgresPair,
    settings: Record<string, string> = {},
  ): Promise<World> {
    const { port, folder } = await s3Server();
    const bucket = await freshBucket();
    const s3 = await s3Proxy(port, random);
    ends.push(async () => await s3.close());
    const name = `faults_${process.pid}_${Date.now()}_${Math.floor(random() * 1e6)}`;
    const world = new World(
      {
        ...common,
        RELORA_DATABASE_URL: await postgres.database(name),
        RELORA_STORE_URL: bucket.replace(`:${port}`, `:${s3.port}`),
        RELORA_LEASE_SECONDS: String(leaseMs / 1000),
        AWS_ACCESS_KEY_ID: process.env.AWS_ACCESS_KEY_ID!,
        AWS_SECRET_ACCESS_KEY: process.env.AWS_SECRET_ACCESS_KEY!,
        ...settings,
      },
      ends,
    );
    world.s3 = s3;
    world.shared = { database: name, bucketFolder: join(folder, new URL(bucket).hostname) };
    await world.addAll(count);
    return world;
  }

  /** A server on each of these hosts, with PostgreSQL and a folder that all of them see; together they train jobs by an `mpirun`. */
  static async onHosts(
    ends: Ends,
    hosts: Hosts,
    postgres: PostgresPair,
    settings: Record<string, string>,
  ): Promise<World> {
    const folder = mkdtempSync(join(tmpdir(), 'relora-blobs-'));
    ends.push(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }));
    const world = new World(
      {
        ...common,
        RELORA_DATABASE_URL: await postgres.database('hosts'),
        RELORA_STORE_URL: pathToFileURL(folder).href,
        RELORA_LEASE_SECONDS: String(leaseMs / 1000),
        RELORA_INSECURE: 'plain-text,no-login',
        ...settings,
      },
      ends,
      hosts,
    );
    await world.addAll(hosts.count);
    return world;
  }

  private async addAll(count: number): Promise<void> {
    this.ends.push(async () => await this.end());
    const folders = Array.from({ length: count }, () => mkdtempSync(join(tmpdir(), 'relora-faults-')));
    await Promise.all(
      folders.map(async (folder, index) => {
        const server = { folder, index, running: await this.start(folder, index) };
        this.servers[index] = server;
        this.follow(server);
      }),
    );
    this.connect(patientMs);
  }

  /** A client that retries for this long by itself. */
  connect(deadlineMs: number): void {
    const address = this.servers.map(({ running }) => running.grpcAddress).join(',');
    void this.client?.close();
    this.client = new ReloraClient({ address, deadlineMs });
  }

  private async end(): Promise<void> {
    this.isOver = true;
    await this.client?.close();
    await Promise.allSettled(this.starting);
    for (const stop of this.stops) await stop();
    for (const { folder } of this.servers) rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  }

  private async start(folder: string, index: number, address?: string): Promise<ServerProcess> {
    const host = this.hosts?.address(index);
    const entries = Object.entries(this.settings).map(([name, value]) => [
      name,
      value.replace('{folder}', folder),
    ]);
    const settings = {
      ...(Object.fromEntries(entries) as Record<string, string>),
      RELORA_GRPC_ADDRESS: address ?? `${host ?? '127.0.0.1'}:0`,
      ...(host !== undefined && { RELORA_MPI_HOST: host }),
    };
    const prefix = this.hosts?.prefix(index) ?? [];
    const starting = startServerProcess(folder, settings, (stop) => this.stops.push(stop), { prefix });
    this.starting.add(starting);
    const running = await starting.finally(() => this.starting.delete(starting));
    // An answer about an error inside has only the id of its line in the log.
    onTestFailed(() => {
      for (const entry of running.logged.filter(({ errorId }) => errorId !== undefined)) console.log(entry);
    });
    return running;
  }

  /** Starts it again if it may exit by itself. */
  private follow(server: Served): void {
    const { running } = server;
    void running.exited.then(async ({ code, signal }) => {
      if (this.isOver || this.killed.has(running)) return;
      if (!this.mayEnd) {
        return void this.problems.push(`A server ended with ${code ?? signal}: ${running.errors()}`);
      }
      await this.startAgain(server);
    });
  }

  private async startAgain(server: Served): Promise<void> {
    for (;;) {
      try {
        server.running = await this.start(server.folder, server.index, server.running.grpcAddress);
        return this.follow(server);
      } catch (error) {
        if (this.isOver) return;
        if (!this.mayEnd) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    }
  }

  /** Throws if servers ended that must not. */
  throwIfEnded(): void {
    if (this.problems.length > 0) throw new Error(this.problems.join('; '));
  }

  /** `kill -9`, and a start at the same address. */
  async killServer(index: number): Promise<void> {
    const server = this.servers[index]!;
    this.killed.add(server.running);
    server.running.process.kill('SIGKILL');
    await server.running.exited;
    await this.startAgain(server);
  }

  /** Where the newest attempt of a job was started, according to logs; undefined before the first. */
  newestAttempt(job: string): { attempt: number; index: number } | undefined {
    const started = this.servers.flatMap(({ running, index }) =>
      running.logged
        .filter(({ msg, jobId }) => msg === 'A trainer is started' && `jobs/${String(jobId)}` === job)
        .map(({ attempt }) => ({ attempt: Number(attempt), index })),
    );
    return started.sort((one, other) => one.attempt - other.attempt).at(-1);
  }

  /** A client of all servers but one. */
  clientWithout(index: number): ReloraClient {
    const others = this.servers.filter((server) => server.index !== index);
    return new ReloraClient({
      address: others.map(({ running }) => running.grpcAddress).join(','),
      deadlineMs: patientMs,
    });
  }

  /** Process ids of trainers that run: a fault of another one would change nothing. */
  trainerPids(): number[] {
    return this.servers.flatMap(({ running }) => childrenOf(running.process.pid!)).filter(isAwake);
  }
}

const common: Record<string, string> = {
  RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1000',
  RELORA_LOG_LEVEL: 'info',
};
