import { type RawBuilder } from 'kysely';
import type { Database } from './database.js';
import type { ServerRow } from './schema.js';

/** What a server publishes to the others of its store. */
export interface Described {
  /** Where clients reach it. */
  address: string;
  version: string;
  /** JSON; see ServerRow. */
  devices: string;
  memoryBytes: number;
  /** Jobs that it can run at the same time, on its processors and on its cards. */
  slots: number;
  cardSlots: number;
  /** Name by which mpirun reaches it; null if it takes no part in jobs on several servers. */
  mpiHost: string | null;
  startTimeMs: number;
}

/** How long the rows of servers that died are kept, for investigation. */
const forgottenMs = 86_400_000;

/** Records that a server lives. Returns the time of the database. */
export async function beatOfServer(
  db: Database,
  id: string,
  { address, version, devices, memoryBytes, slots, cardSlots, mpiHost, startTimeMs }: Described,
  databaseTime: RawBuilder<number>,
): Promise<number> {
  const now = {
    address,
    version,
    devices,
    memory_bytes: memoryBytes,
    slots,
    card_slots: cardSlots,
    mpi_host: mpiHost,
    heartbeat_time_ms: databaseTime,
  };
  const beat = await db
    .insertInto('servers')
    .values({ id, start_time_ms: startTimeMs, ...now })
    .onConflict((conflict) => conflict.column('id').doUpdateSet(now))
    .returning('heartbeat_time_ms')
    .executeTakeFirstOrThrow();
  return beat.heartbeat_time_ms;
}

/** Servers that use the store, oldest first: those with a beat within the lease time. */
export async function livingServers(db: Database, leaseMs: number): Promise<ServerRow[]> {
  return await db
    .selectFrom('servers')
    .selectAll()
    .where('heartbeat_time_ms', '>', (query) =>
      query
        .selectFrom('servers')
        .select(({ eb, fn }) => eb(fn.max('heartbeat_time_ms'), '-', leaseMs).as('oldest')),
    )
    .orderBy('start_time_ms')
    .execute();
}

/** Removes a server that ends, and rows of servers that died long ago. */
export async function removeServer(db: Database, id: string): Promise<void> {
  await db.deleteFrom('servers').where('id', '=', id).execute();
  await db
    .deleteFrom('servers')
    .where('heartbeat_time_ms', '<', (query) =>
      query
        .selectFrom('servers')
        .select(({ eb, fn }) => eb(fn.max('heartbeat_time_ms'), '-', forgottenMs).as('oldest')),
    )
    .execute();
}
