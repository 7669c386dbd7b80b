import { readStoredRunSpec, replicasNeeded, replicasWithin } from '@relora/engine/plan';
import type { Transaction } from 'kysely';
import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';
import type { GangPlaceRow, JobRow, Schema, ServerRow } from '../store/schema.js';
import { isOnCards, pinOf, type DeviceDescription, type DeviceName } from './jobDevices.js';

/** What mpirun starts on a server for each rank there. */
export interface RankLaunch {
  /** Name or address by which mpirun reaches the machine. */
  host: string;
  /** Program and arguments. */
  command: string[];
}

/** The ranks of a job on one server, starting with `firstRank`. */
export interface GangShare {
  serverId: string;
  attempt: number;
  device: DeviceName;
  firstRank: number;
  count: number;
  /** Ranks on all servers. */
  size: number;
  /** Null until the server has everything that its ranks read. */
  launch: RankLaunch | null;
}

type Trx = Transaction<Schema>;

/** What each rank of a job takes: a slot of the processors, or a card. */
export type PlaceKind = 'processors' | 'cards';

/**
 * Those of the living servers that may train one job together on places of this kind, including `ownId`: they take part in joint training
 * and compute identically. Ranks with another version, other instructions or cards of another architecture would get other bits.
 */
export function alikeServers(living: readonly ServerRow[], ownId: string, on: PlaceKind): ServerRow[] {
  const servers = living.filter((server) => mayJoin(server, on));
  const own = servers.find(({ id }) => id === ownId);
  if (own === undefined) return [];
  const kind = kindOf(own, on);
  return servers.filter((server) => kindOf(server, on) === kind);
}

/** Whether a server takes part in joint training: with its cards only if all are of one architecture. */
export function mayJoin(server: ServerRow, on: PlaceKind): boolean {
  return (
    server.mpi_host !== null &&
    placesOf(server, on) > 0 &&
    (on === 'processors' || pinsOf(server, on).length === 1)
  );
}

/** The places of a server for the ranks of one job, free or not. */
export function placesOf({ slots, card_slots, devices }: ServerRow, on: PlaceKind): number {
  if (on === 'processors') return slots;
  return card_slots === 0 ? 0 : devicesOn(devices, on).length;
}

/** What determines the bits that a rank on a server computes. */
export function kindOf(server: Pick<ServerRow, 'version' | 'devices'>, on: PlaceKind): string {
  return [server.version, ...pinsOf(server, on)].join(', ');
}

function pinsOf({ devices }: Pick<ServerRow, 'devices'>, on: PlaceKind): string[] {
  return [...new Set(devicesOn(devices, on).map(pinOf))].sort();
}

function devicesOn(devices: string, on: PlaceKind): DeviceDescription[] {
  const descriptions = JSON.parse(devices) as DeviceDescription[];
  return descriptions.filter(({ backend }) => isOnCards(backend) === (on === 'cards'));
}

export function needed(row: JobRow): number {
  return replicasNeeded(readStoredRunSpec(row.spec), row.attempt > 0);
}

/** Offers `slots` places of a server for a job, replacing its earlier offer; 0 withdraws it. */
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
    // A row that is left of an earlier attempt.
    .onConflict((conflict) =>
      conflict
        .columns(['job_id', 'server_id'])
        .doUpdateSet({ slots, attempt: null, device: null, first_rank: null, size: null, launch: null }),
    )
    .execute();
}

/**
 * Assigns the ranks of a job to the servers that offer places: the calling server gets the first, and the ranks of one server are
 * consecutive. Null while there are not enough places.
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
  // The largest offers first, so that few servers take part.
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

/** Turns offers into places of an attempt and withdraws the remaining ones. */
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

/** Whether a server's offer for a job was accepted. */
export async function isTakenUp(trx: Trx, serverId: string, jobId: string): Promise<boolean> {
  const row = await trx
    .selectFrom('gang_places')
    .select('attempt')
    .where('server_id', '=', serverId)
    .where('job_id', '=', jobId)
    .executeTakeFirst();
  return row !== undefined && row.attempt !== null;
}

/** Number of places that servers offer for a waiting job. */
export async function offeredPlaces(trx: Trx | Database, jobId: string): Promise<number> {
  const rows = await trx
    .selectFrom('gang_places')
    .select('slots')
    .where('job_id', '=', jobId)
    .where('attempt', 'is', null)
    .execute();
  return rows.reduce((sum, { slots }) => sum + slots, 0);
}

/** The places that servers have in attempts. */
export class GangPlaces {
  constructor(
    private readonly db: Database,
    private readonly leases: Leases,
  ) {}

  /** The shares of a job's attempt, ordered by rank. */
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

  /** The shares of this server, by job, whether it leads the attempt or not. */
  async ofOwn(): Promise<Map<string, GangShare>> {
    const rows = await this.db
      .selectFrom('gang_places')
      .selectAll()
      .where('server_id', '=', this.leases.serverId)
      .where('attempt', 'is not', null)
      .execute();
    return new Map(rows.map((row) => [row.job_id, toShare(row)]));
  }

  /** Records that everything that the ranks of this server read is there. False if it no longer has a share in that attempt. */
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

  /** Gives up this server's share in an attempt. */
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
