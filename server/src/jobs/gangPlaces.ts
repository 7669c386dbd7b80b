import { readStoredRunSpec, replicasNeeded, replicasWithin } from '@relora/engine/plan';
import type { Transaction } from 'kysely';
import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';
import type { GangPlaceRow, JobRow, Schema, ServerRow } from '../store/schema.js';
import { pinOf, type DeviceDescription, type DeviceName } from './jobDevices.js';

/** What mpirun starts on a server for each rank that it has there. */
export interface RankLaunch {
  /** By which mpirun reaches the machine. */
  host: string;
  /** A program and its arguments. */
  command: string[];
}

/** Ranks of a job that a server has, from `firstRank` on. */
export interface GangShare {
  serverId: string;
  attempt: number;
  device: DeviceName;
  firstRank: number;
  count: number;
  /** Ranks of all servers. */
  size: number;
  /** Null until its server has everything that they read. */
  launch: RankLaunch | null;
}

type Trx = Transaction<Schema>;

/**
 * Servers that may train one job together, of which this one is one: they take part in it, and compute alike. With another version or
 * other instructions a rank has other bits.
 */
export async function alikeServers(leases: Leases): Promise<ServerRow[]> {
  const servers = (await leases.servers()) ?? [];
  const own = servers.find(({ id }) => id === leases.serverId);
  if (own === undefined || own.mpi_host === null) return [];
  const kind = kindOf(own);
  return servers.filter((server) => server.mpi_host !== null && kindOf(server) === kind);
}

/** What decides the bits of a rank there. */
export function kindOf({ version, devices }: Pick<ServerRow, 'version' | 'devices'>): string {
  const descriptions = JSON.parse(devices) as DeviceDescription[];
  const pins = descriptions.filter(({ backend }) => backend !== 'cuda').map(pinOf);
  return [version, ...[...new Set(pins)].sort()].join(', ');
}

export function needed(row: JobRow): number {
  return replicasNeeded(readStoredRunSpec(row.spec), row.attempt > 0);
}

/** Offers so many places of a server for a job, in place of what it offered before; 0 for none. */
export async function offerPlaces(
  trx: Trx,
  serverId: string,
  jobId: string | null,
  slots: number,
): Promise<void> {
  await trx
    .deleteFrom('gang_places')
    .where('server_id', '=', serverId)
    .where('attempt', 'is', null)
    .execute();
  if (jobId === null || slots === 0) return;
  await trx
    .insertInto('gang_places')
    .values({ job_id: jobId, server_id: serverId, slots })
    // What is left of an attempt that is over.
    .onConflict((conflict) =>
      conflict
        .columns(['job_id', 'server_id'])
        .doUpdateSet({ slots, attempt: null, device: null, first_rank: null, size: null, launch: null }),
    )
    .execute();
}

/**
 * Shares the ranks of a job out among the servers that offer places: the one that asks has the first, and one server's follow each other.
 * Null while there are not enough.
 */
export async function shareOut(
  trx: Trx,
  row: JobRow,
  own: string,
  servers: readonly ServerRow[],
): Promise<{ serverId: string; count: number; firstRank: number; size: number }[] | null> {
  const living = new Set(servers.map(({ id }) => id));
  const offers = (
    await trx
      .selectFrom('gang_places')
      .select(['server_id', 'slots'])
      .where('job_id', '=', row.id)
      .where('attempt', 'is', null)
      .execute()
  ).filter(({ server_id }) => living.has(server_id));
  const offered = offers.reduce((sum, { slots }) => sum + slots, 0);
  if (offered < needed(row) || !offers.some(({ server_id }) => server_id === own)) return null;
  const size = replicasWithin(readStoredRunSpec(row.spec), offered);
  // The largest next, so that there are few of them.
  const order = offers.sort(
    (one, other) =>
      Number(other.server_id === own) - Number(one.server_id === own) || other.slots - one.slots,
  );
  const shares = [];
  let firstRank = 0;
  for (const { server_id: serverId, slots } of order) {
    const count = Math.min(slots, size - firstRank);
    if (count > 0) shares.push({ serverId, count, firstRank, size });
    firstRank += count;
  }
  return shares;
}

/** Makes offers into places of an attempt; those of the others are free again. */
export async function fixShares(
  trx: Trx,
  jobId: string,
  attempt: number,
  device: DeviceName,
  shares: NonNullable<Awaited<ReturnType<typeof shareOut>>>,
): Promise<void> {
  await trx.deleteFrom('gang_places').where('job_id', '=', jobId).execute();
  await trx
    .insertInto('gang_places')
    .values(
      shares.map(({ serverId, count, firstRank, size }) => ({
        ...{ job_id: jobId, server_id: serverId, slots: count },
        ...{ attempt, device, first_rank: firstRank, size, launch: null },
      })),
    )
    .execute();
}

/** Whether a server's offer for a job was taken up. */
export async function isTakenUp(trx: Trx, serverId: string, jobId: string): Promise<boolean> {
  const row = await trx
    .selectFrom('gang_places')
    .select('attempt')
    .where('server_id', '=', serverId)
    .where('job_id', '=', jobId)
    .executeTakeFirst();
  return row !== undefined && row.attempt !== null;
}

/** What servers offer for a job that waits. */
export async function offeredPlaces(trx: Trx | Database, jobId: string): Promise<number> {
  const rows = await trx
    .selectFrom('gang_places')
    .select('slots')
    .where('job_id', '=', jobId)
    .where('attempt', 'is', null)
    .execute();
  return rows.reduce((sum, { slots }) => sum + slots, 0);
}

/** Rows of the places that servers have in attempts. */
export class GangPlaces {
  constructor(
    private readonly db: Database,
    private readonly leases: Leases,
  ) {}

  /** Shares of a job's attempt, by rank. */
  async of(jobId: string, attempt: number): Promise<GangShare[]> {
    const rows = await this.db
      .selectFrom('gang_places')
      .selectAll()
      .where('job_id', '=', jobId)
      .where('attempt', '=', attempt)
      .orderBy('first_rank')
      .execute();
    return rows.map(toShare);
  }

  /** What this server has in attempts that are led by itself or by others, by job. */
  async ofOwn(): Promise<Map<string, GangShare>> {
    const rows = await this.db
      .selectFrom('gang_places')
      .selectAll()
      .where('server_id', '=', this.leases.serverId)
      .where('attempt', 'is not', null)
      .execute();
    return new Map(rows.map((row) => [row.job_id, toShare(row)]));
  }

  /** Everything that its ranks read is there. False where it has no share in that attempt any more. */
  async ready(jobId: string, attempt: number, launch: RankLaunch): Promise<boolean> {
    const { numUpdatedRows } = await this.db
      .updateTable('gang_places')
      .set({ launch: JSON.stringify(launch) })
      .where('job_id', '=', jobId)
      .where('server_id', '=', this.leases.serverId)
      .where('attempt', '=', attempt)
      .executeTakeFirst();
    return numUpdatedRows > 0n;
  }

  /** It has no part in an attempt any more. */
  async leave(jobId: string, attempt: number): Promise<void> {
    await this.db
      .deleteFrom('gang_places')
      .where('job_id', '=', jobId)
      .where('server_id', '=', this.leases.serverId)
      .where('attempt', '=', attempt)
      .execute();
  }
}

function toShare({ server_id, slots, attempt, device, first_rank, size, launch }: GangPlaceRow): GangShare {
  return {
    serverId: server_id,
    attempt: attempt!,
    device: device as DeviceName,
    firstRank: first_rank!,
    count: slots,
    size: size!,
    launch: launch === null ? null : (JSON.parse(launch) as RankLaunch),
  };
}
