import { sql, type RawBuilder } from 'kysely';
import type { Database } from './database.js';
import type { Described } from './servers.js';
import { beatOfServer, livingServers, removeServer } from './servers.js';
import type { ServerRow } from './schema.js';
import { isStoreBroken, StoreUnusable } from './storeError.js';
import { timedId } from './timedId.js';

/** What one server at a time works on: a running job, a pending export, a preparation, a reader of journals. */
export type LeasedTable = 'jobs' | 'artifacts' | 'datasets' | 'journal_readers';

export interface LeaseOptions {
  /** How long a server may be silent before others take over what it works on. */
  leaseMs: number;
  onStoreFailure?(error: unknown): void;
}

interface Held {
  table: LeasedTable;
  id: string;
  /** Attempt of a job, epoch of the others: who writes with an older one is refused. */
  fence: number;
  onLost(): void;
}

/** A machine whose clock is further off at its start has none that can be trusted. */
const clockOffsetMsMax = 300_000;

/** Beats in one lease: two may get lost. */
const beatsPerLease = 3;

/** The column that rises with every claim, and the states in which a row is worked on. */
const leased = {
  jobs: { fence: 'attempt', states: ['starting', 'running'] },
  artifacts: { fence: 'epoch', states: ['pending'] },
  datasets: { fence: 'epoch', states: ['preparing'] },
  journal_readers: { fence: 'epoch', states: ['active'] },
} as const;

/**
 * Says of rows that this server works on them, for as long as it lives. Who claims a row raises its fence, and every later
 * write names the fence: a server that was taken for dead changes nothing any more, whatever it still does. Times are those
 * of the database, so the clocks of servers do not matter. A server that holds its store alone needs no beats: what another
 * left behind is free.
 */
export class Leases {
  readonly serverId = timedId('server', Date.now());
  private readonly held = new Set<Held>();
  private timer: NodeJS.Timeout | undefined;
  private beating: Promise<void> | undefined;
  private isStopping = false;
  private describe: (() => Described) | undefined;
  /** On the monotonic clock: the last beat, and the first since when none failed or was late. */
  private lastBeatMs = -Infinity;
  private steadySinceMs = Infinity;
  /**
   * How far the clock of the database is ahead of our monotonic one: the time of day may be set while we run. Null: ours counts.
   */
  private aheadMs: number | null = null;

  constructor(
    private readonly db: Database,
    /** Null: no other server works on this store. */
    private readonly options: LeaseOptions | null = null,
  ) {}

  /** Time after which what another server left is looked for again; null where there is no other. */
  get retryMs(): number | null {
    return this.options === null ? null : this.beatMs;
  }

  get isShared(): boolean {
    return this.options !== null;
  }

  /** Begins to beat; `describe` is what the other servers may know of this one. */
  async start(describe: () => Described): Promise<void> {
    this.describe = describe;
    if (this.options !== null) await this.beat();
  }

  /** Throws StoreUnusable where the clocks of this machine and of the database are far apart. */
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

  /** Milliseconds since 1970 by the clock that all servers of the store go by. */
  now(): number {
    return this.aheadMs === null ? Date.now() : Math.round(performance.now() + this.aheadMs);
  }

  /** Others may take at once what this server still held. */
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

  /** What a claim sets in its row, beside a higher fence. */
  grant(): { lease_server: string; lease_until_ms: RawBuilder<number> | null } {
    return { lease_server: this.serverId, lease_until_ms: this.until };
  }

  /** Condition of a claim: nobody works on the row, or whoever did was silent for too long. */
  get isFree(): RawBuilder<boolean> {
    if (this.options === null) return sql`1 = 1`;
    return sql`(lease_until_ms is null or lease_until_ms < ${databaseTime})`;
  }

  /**
   * Whether this server may say of others that they are dead. Not just after the store was away from it: then it was away from
   * them, too, and they get the time of one beat to say that they live.
   */
  get mayTakeOver(): boolean {
    if (this.options === null) return true;
    const nowMs = performance.now();
    return nowMs - this.lastBeatMs < 2 * this.beatMs && nowMs - this.steadySinceMs >= this.beatMs;
  }

  /** All that work on the store, this one among them; null where it is alone. */
  async servers(): Promise<ServerRow[] | null> {
    return this.options === null ? null : await livingServers(this.db, this.options.leaseMs);
  }

  /** Renews a claim until it is released. `onLost` is called once when another server has the row, or nobody needs it any more. */
  hold(table: LeasedTable, id: string, fence: number, onLost: () => void = () => {}): () => void {
    const held = { table, id, fence, onLost };
    this.held.add(held);
    return () => void this.held.delete(held);
  }

  isHeld(table: LeasedTable, id: string): boolean {
    for (const held of this.held) if (held.table === table && held.id === id) return true;
    return false;
  }

  /** The database's clock was read between `before` and now. */
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
        // It is tried again soon. What others take over meanwhile is lost, and that is noticed by the first beat that arrives.
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
