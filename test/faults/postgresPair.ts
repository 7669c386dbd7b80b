import { type ChildProcess } from 'node:child_process';
import { chmodSync, chownSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { freePort, runPostgres, spawnPostgres, postgresUser } from '../server/postgres.js';
import { childrenOf } from './processes.js';
import { tcpProxy, type TcpProxy } from './tcpProxy.js';

interface Node {
  folder: string;
  port: number;
  child: ChildProcess;
}

/** PostgreSQL with an optional synchronous standby, behind one address as a cluster manager would provide it. */
export class PostgresPair {
  private standby: Node | undefined;

  private constructor(
    private primary: Node,
    readonly proxy: TcpProxy,
    private readonly host: string,
  ) {}

  /** Listens on an address of this machine. */
  static async start(host = '127.0.0.1'): Promise<PostgresPair> {
    const folder = newFolder();
    await runPostgres('initdb', [
      ...['-D', join(folder, 'data'), '-U', 'relora', '-A', 'trust'],
      ...['-E', 'UTF8', '--locale', 'C.UTF-8', '-N'],
    ]);
    const primary = await startNode(folder);
    return new PostgresPair(primary, await tcpProxy(primary.port, host), host);
  }

  async database(name: string): Promise<string> {
    await this.query(`create database ${name}`);
    return `postgres://relora@${this.host}:${this.proxy.port}/${name}`;
  }

  /** A power cut of its machine. */
  async restart(): Promise<void> {
    const { child, folder } = this.primary;
    child.kill('SIGQUIT');
    await new Promise((resolve) => child.once('exit', resolve));
    this.primary = await startNode(folder, this.primary.port);
  }

  /** Ends all connections of the servers. */
  cut(): void {
    this.proxy.cut();
  }

  /** Stops all of its processes for a time, like a hanging machine. */
  async pause(ms: number): Promise<void> {
    const pids = family(this.primary.child.pid!);
    for (const pid of pids) tryKill(pid, 'SIGSTOP');
    await new Promise((resolve) => setTimeout(resolve, ms));
    for (const pid of pids) tryKill(pid, 'SIGCONT');
  }

  /** From now on acknowledged data is on two machines. */
  async addStandby(): Promise<void> {
    const folder = newFolder();
    await runPostgres('pg_basebackup', [
      ...['-D', join(folder, 'data'), '-h', '127.0.0.1', '-p', String(this.primary.port)],
      ...['-U', 'relora', '-R', '-c', 'fast', '-X', 'stream'],
    ]);
    this.standby = await startNode(folder);
    await this.query(`alter system set synchronous_standby_names = '*'`);
    await this.query('select pg_reload_conf()');
    for (;;) {
      const { rows } = await this.query(`select 1 from pg_stat_replication where sync_state = 'sync'`);
      if (rows.length > 0) return;
      await new Promise((resolve) => setTimeout(resolve, 50)); // nothing reports it
    }
  }

  /** The primary's machine is lost for good; the standby takes over. */
  async failover(): Promise<void> {
    const { child, folder } = this.primary;
    child.kill('SIGKILL');
    await new Promise((resolve) => child.once('exit', resolve));
    for (const pid of family(child.pid!)) tryKill(pid);
    this.proxy.cut();
    this.primary = this.standby!;
    this.standby = undefined;
    await this.query('select pg_promote()');
    await this.query('alter system reset synchronous_standby_names');
    await this.query('select pg_reload_conf()');
    this.proxy.target = this.primary.port;
    rmSync(folder, { recursive: true, force: true });
  }

  async stop(): Promise<void> {
    await this.proxy.close();
    for (const node of [this.primary, this.standby]) {
      if (node === undefined) continue;
      for (const pid of family(node.child.pid!)) tryKill(pid, 'SIGCONT');
      node.child.kill('SIGQUIT');
      if (node.child.exitCode === null) await new Promise((resolve) => node.child.once('exit', resolve));
      rmSync(node.folder, { recursive: true, force: true });
    }
  }

  /** Number of client connections to a database. */
  async connectionsOf(database: string): Promise<number> {
    const { rows } = await this.query(
      `select count(*)::int as count from pg_stat_activity where datname = '${database}'`,
    );
    return (rows[0] as { count: number }).count;
  }

  /** Total number of rows in these tables. */
  async rowsOf(database: string, tables: readonly string[]): Promise<number> {
    const counts = tables.map((table) => `(select count(*) from ${table})`).join(' + ');
    const { rows } = await this.query(`select (${counts})::int as count`, database);
    return (rows[0] as { count: number }).count;
  }

  private async query(statement: string, database?: string): Promise<pg.QueryResult> {
    return await ask(this.primary.port, statement, database);
  }
}

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'relora-postgres-'));
  if (postgresUser !== undefined) chownSync(folder, postgresUser.uid, postgresUser.gid);
  chmodSync(folder, 0o700);
  return folder;
}

async function startNode(folder: string, port?: number): Promise<Node> {
  const at = port ?? (await freePort());
  const child = spawnPostgres(join(folder, 'data'), folder, at);
  for (;;) {
    if (child.exitCode !== null) throw new Error(`PostgreSQL ended with code ${child.exitCode}`);
    try {
      await ask(at, 'select 1');
      return { folder, port: at, child };
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50)); // nothing reports when it listens
    }
  }
}

async function ask(port: number, statement: string, database = 'postgres'): Promise<pg.QueryResult> {
  const client = new pg.Client({ connectionString: `postgres://relora@127.0.0.1:${port}/${database}` });
  client.on('error', () => {});
  await client.connect();
  try {
    return await client.query(statement);
  } finally {
    await client.end();
  }
}

/** A process and its children. */
function family(pid: number): number[] {
  return [pid, ...childrenOf(pid)];
}

function tryKill(pid: number, signal: NodeJS.Signals = 'SIGKILL'): void {
  try {
    process.kill(pid, signal);
  } catch {
    // gone already
  }
}
