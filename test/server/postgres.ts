import { spawn, spawnSync, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll } from 'vitest';

/** Folder of Debian's PostgreSQL programs, newest version; undefined if not installed. */
const programs = ((): string | undefined => {
  const root = '/usr/lib/postgresql';
  if (!existsSync(root)) return undefined;
  const versions = readdirSync(root).sort((a, b) => Number(b) - Number(a));
  return versions.map((version) => join(root, version, 'bin')).find((bin) => existsSync(join(bin, 'initdb')));
})();

/** PostgreSQL refuses to run as root: in that case it runs as an ordinary user. */
export const postgresUser = ((): { uid: number; gid: number } | undefined => {
  if (process.getuid!() !== 0) return undefined;
  const id = (flag: string) => Number(spawnSync('id', [flag, 'nobody'], { encoding: 'utf8' }).stdout);
  return { uid: id('-u'), gid: id('-g') };
})();

export const hasPostgres = programs !== undefined;

/** The stores available on this machine: tests of SQLite are also run on PostgreSQL. */
export const stores = [
  { name: 'SQLite', url: async (): Promise<string | undefined> => undefined, skip: false },
  { name: 'PostgreSQL', url: freshDatabase, skip: !hasPostgres },
];

let cluster: Promise<Cluster> | undefined;
let databaseCount = 0;

interface Cluster {
  port: number;
  stop(): Promise<void>;
}

/** A new empty database; its server is started for the first one, and ends with the test file. */
export async function freshDatabase(): Promise<string> {
  const { port } = await (cluster ??= startCluster());
  const name = `test_${databaseCount++}`;
  const admin = new pg.Client({ connectionString: urlOf(port, 'postgres') });
  await admin.connect();
  await admin.query(`create database ${name}`);
  await admin.end();
  return urlOf(port, name);
}

function urlOf(port: number, database: string): string {
  return `postgres://relora@127.0.0.1:${port}/${database}`;
}

async function startCluster(): Promise<Cluster> {
  const folder = mkdtempSync(join(tmpdir(), 'relora-postgres-'));
  if (postgresUser !== undefined) chownSync(folder, postgresUser.uid, postgresUser.gid);
  chmodSync(folder, 0o700);
  const data = join(folder, 'data');
  await runPostgres('initdb', [
    '-D',
    data,
    '-U',
    'relora',
    '-A',
    'trust',
    '-E',
    'UTF8',
    '--locale',
    'C.UTF-8',
    '-N',
  ]);
  const port = await freePort();
  const child = spawnPostgres(data, folder, port);
  const stop = async (): Promise<void> => {
    if (child.exitCode === null) {
      child.kill('SIGQUIT'); // immediately: its data is no longer needed
      await new Promise((resolve) => child.once('exit', resolve));
    }
    rmSync(folder, { recursive: true, force: true });
  };
  for (;;) {
    if (child.exitCode !== null) throw new Error(`PostgreSQL ended with code ${child.exitCode}`);
    const client = new pg.Client({ connectionString: urlOf(port, 'postgres') });
    client.on('error', () => {});
    try {
      await client.connect();
      await client.end();
      return { port, stop };
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50)); // it does not report when it listens
    }
  }
}

/** Starts the database of a data folder; the other folder is for its socket. Syncs stay on, since the server refuses a database without. */
export function spawnPostgres(data: string, folder: string, port: number): ChildProcess {
  return spawn(
    join(programs!, 'postgres'),
    ['-D', data, '-k', folder, '-h', '127.0.0.1', '-p', String(port), '-c', 'max_connections=100'],
    { ...optionsOf(), stdio: 'ignore' },
  );
}

function optionsOf(): SpawnOptions {
  return { ...postgresUser, cwd: '/', env: { PATH: process.env.PATH, LC_ALL: 'C.UTF-8' } };
}

/** Runs one of its programs to completion. */
export async function runPostgres(program: string, args: string[]): Promise<void> {
  const child = spawn(join(programs!, program), args, {
    ...optionsOf(),
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let problem = '';
  child.stderr!.on('data', (text) => (problem += text));
  const code = await new Promise((resolve) => child.once('exit', resolve));
  if (code !== 0) throw new Error(`${program} ended with code ${String(code)}: ${problem}`);
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Ends PostgreSQL immediately, like a power cut; the next database gets a new server. */
export async function stopPostgres(): Promise<void> {
  const stopped = cluster;
  cluster = undefined;
  await (await stopped?.catch(() => undefined))?.stop();
}

afterAll(stopPostgres);
