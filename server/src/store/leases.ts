import { sql, type RawBuilder } from 'kysely';
import type { Database } from './database.js';
import type { Described } from './servers.js';
import { beatOfServer, livingServers, removeServer } from './servers.js';
import type { ServerRow } from './schema.js';
import { isStoreBroken, StoreUnusable } from './storeError.js';
import { timedId } from './timedId.js';

/** What only one server at a time works on: a running job, a pending export, a preparation, a reader of journals. */
export type LeasedTable = 'jobs' | 'artifacts' | 'datasets' | 'journal_readers';

export interface LeaseOptions {
  /** How long a server may be silent before others take over its work. */
  leaseMs: number;
  onStoreFailure?(error: unknown): void;
}

interface Held {
  table: LeasedTable;
  id: string;
  /** Attempt of a job, epoch of the others: writes with an older one are refused. */
  fence: number;
  onLost(): void;
}

/** A larger difference at the start means that one of the clocks is wrong. */
const clockOffsetMsMax = 300_000;

/** Beats per lease duration: two may get lost. */
const beatsPerLease = 3;

/** For each table, the column that rises with every claim, and the states in which a server works on a row. */
const leased = {
  jobs: { fence: 'attempt', states: ['starting', 'running'] },
  artifacts: { fence: 'epoch', states: ['pending'] },
  datasets: { fence: 'epoch', states: ['preparing'] },
  journal_readers: { fence: 'epoch', states: ['active'] },
} as const;

/**
 * Marks rows that this server works on, for as long as it lives. A claim of a row raises its fence, and every later write names that fence:
 * so a server that was taken for dead cannot change anything any more. Times are those of the database, so the clocks of servers do not
 * matter. The only server of a store needs no beats: whatever another one left is free.
 */
export class Leases {
  readonly serverId = timedId('server', Date.now());
  private readonly held = new Set<Held>();
  private timer: NodeJS.Timeout | undefined;
  private beating: Promise<void> | undefined;
  private isStopping = false;
  private describe: (() => Described) | undefined;
  /** On the monotonic clock: the last beat, and the time since when none failed or was late. */
  private lastBeatMs = -Infinity;
  private steadySinceMs = Infinity;
  /**
   * How far the clock of the database is ahead of our monotonic clock, which is used because the time of day may be set while we run. Null:
   * our own time of day is used.
   */
  private aheadMs: number | null = null;

  constructor(
    private readonly db: Database,
    /** Null: no other server works on this store. */
    private readonly options: LeaseOptions | null = null,
  ) {}

  /** Time after which to look again for work that another server left; null if there is no other. */
  get retryMs(): number | null {
    return this.options === null ? null : this.beatMs;
  }

  get isShared(): boolean {
    return this.options !== null;
  }

  /** Begins to beat; `describe` returns what other servers may know about this one. */
  async start(describe: () => Described): Promise<void> {
    this.describe = describe;
    if (this.options !== null) await this.beat();
  }

  /** Throws StoreUnusable if the clocks of this machine and of the database differ too much. */
  async requireClock(): Promise<void> {
    if (this.options === null) return;
    const before = performance.now();
    const { rows } = await sql<{ now: number }>`select ${databaseTime} as now`.execute(this.db);
    this.anchor(rows[0]!.now, before);
    const offsetMs = this.now() - Date.now();
    if (Math.abs(offsetMs) <= clockOffsetMsMax) return;
    const seconds = Math.round(Math.abs(offsetMs) / 1000);
    throw new StoreUnusable(
      `The clock of this machine is ${seconds} s ${offsetMs > 0 ? 'behind' : 'ahead of'} that of the database: set it right, as by NTP`,
    );
  }

  /** Milliseconds since 1970, by the clock that all servers of the store use. */
  now(): number {
    return this.aheadMs === null ? Date.now() : Math.round(performance.now() + this.aheadMs);
  }

  /** Others may immediately take what this server still held. */
  async stop(): Promise<void> {
    this.isStopping = true;
    clearTimeout(this.timer);
    await this.beating;
    if (this.options === null || this.describe === undefined) return;
    for (const table of Object.keys(leased) as LeasedTable[])
      await sql`update ${sql.table(table)} set lease_until_ms = null
        where lease_server = ${this.serverId} and state in (${sql.join(leased[table].states)})`.execute(
        this.db,
      );
    await removeServer(this.db, this.serverId);
  }

  /** Columns that a claim sets in addition to the higher fence. */
  grant(): { lease_server: string; lease_until_ms: RawBuilder<number> | null } {
    return { lease_server: this.serverId, lease_until_ms: this.until };
  }

  /** Condition of a claim: nobody works on the row, or the server that did was silent for too long. */
  get isFree(): RawBuilder<boolean> {
    if (this.options === null) return sql`1 = 1`;
    return sql`(lease_until_ms is null or lease_until_ms < ${databaseTime})`;
  }

  /**
   * Whether this server may declare others dead. Not right after it could not reach the store: the others could not reach it either, and
   * get the time of one beat to show that they live.
   */
  get mayTakeOver(): boolean {
    if (this.options === null) return true;
    const nowMs = performance.now();
    return nowMs - this.lastBeatMs < 2 * this.beatMs && nowMs - this.steadySinceMs >= this.beatMs;
  }

  /** All servers of the store, including this one; null if it is the only one. */
  async servers(): Promise<ServerRow[] | null> {
    return this.options === null ? null : await livingServers(this.db, this.options.leaseMs);
  }

  /** Renews a claim until it is released. `onLost` is called once, when another server has the row or nobody works on it any more. */
  hold(table: LeasedTable, id: string, fence: number, onLost: () => void = () => {}): () => void {
    const held = { table, id, fence, onLost };
    this.held.add(held);
    return () => void this.held.delete(held);
  }

  isHeld(table: LeasedTable, id: string): boolean {
    for (const held of this.held) if (held.table === table && held.id === id) return true;
    return false;
  }

  /** Call after reading the database's clock; `before` is our clock before that. */
  private anchor(databaseMs: number, before: number): void {
    this.aheadMs = databaseMs - (before + performance.now()) / 2;
  }

  private get beatMs(): number {
    return this.options!.leaseMs / beatsPerLease;
  }

  private get until(): RawBuilder<number> | null {
    return this.options === null ? null : sql<number>`${databaseTime} + ${this.options.leaseMs}`;
  }

  private async beat(): Promise<void> {
    this.beating = this.renew()
      .then(() => {
        const nowMs = performance.now();
        if (nowMs - this.lastBeatMs > 2 * this.beatMs) this.steadySinceMs = nowMs;
        this.lastBeatMs = nowMs;
      })
      .catch((error: unknown) => {
        // Retried soon. If others take over rows meanwhile, the next successful beat notices it.
        if (isStoreBroken(error)) this.options?.onStoreFailure?.(error);
      });
    const begunMs = performance.now();
    await this.beating;
    if (this.isStopping) return;
    const isLate = performance.now() - this.lastBeatMs > this.beatMs;
    const waitMs = isLate ? this.beatMs / 4 : this.beatMs - (performance.now() - begunMs);
    this.timer = setTimeout(() => void this.beat(), Math.max(10, waitMs));
  }

  private async renew(): Promise<void> {
    const before = performance.now();
    this.anchor(await beatOfServer(this.db, this.serverId, this.describe!(), databaseTime), before);
    for (const table of Object.keys(leased) as LeasedTable[]) {
      const held = [...this.held].filter((entry) => entry.table === table);
      if (held.length === 0) continue;
      const { fence, states } = leased[table];
      const { rows } = await sql<{ id: string; fence: number }>`
        update ${sql.table(table)} set lease_until_ms = ${this.until}
        where lease_server = ${this.serverId} and state in (${sql.join(states)})
          and id in (${sql.join(held.map(({ id }) => id))})
        returning id, ${sql.ref(fence)} as fence`.execute(this.db);
      const renewed = new Set(rows.map((row) => `${row.id} ${row.fence}`));
      for (const entry of held) {
        if (renewed.has(`${entry.id} ${entry.fence}`) || !this.held.delete(entry)) continue;
        entry.onLost();
      }
    }
  }
}

/** Milliseconds since 1970 by the database's own clock. Only PostgreSQL is shared. */
const databaseTime: RawBuilder<number> = sql`(extract(epoch from clock_timestamp()) * 1000)::bigint`;
