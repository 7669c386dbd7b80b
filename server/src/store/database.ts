import type { Kysely } from 'kysely';
import type { Schema } from './schema.js';
import { openPostgres } from './postgres.js';
import { openSqlite } from './sqlite.js';

/**
 * The store, in SQLite in a data folder or in PostgreSQL: one schema and one set of queries. SQLite has one connection with a mutex around
 * it, which a transaction holds from begin to commit. PostgreSQL has several connections, so a transaction uses `for update` to lock what
 * it reads before it writes (SQLite's compiler omits that). A transaction must not wait for anything but its own statements.
 */
export type Database = Kysely<Schema>;

export interface DatabaseOptions {
  /** Called with the duration of every statement in seconds, for metrics. */
  onStatement?: (seconds: number) => void;
  /** `postgres://…`; absent for SQLite in the data folder. */
  url?: string;
  /** Up to this size a SQLite file is checked completely when it is opened; absent for no limit. */
  wholeCheckBytesMax?: number;
  /** Size of the reserve file that is removed if SQLite cannot be opened or closed on a full disk; 0 for none. */
  reserveBytes?: number;
}

/**
 * Opens the store of a data folder, creates it if there is none, and updates its schema. What a transaction wrote is durable when its
 * promise resolves. Throws StoreUnusable.
 */
export async function openDatabase(dataFolder: string, options: DatabaseOptions = {}): Promise<Database> {
  const { url, ...rest } = options;
  return url === undefined ? await openSqlite(dataFolder, rest) : await openPostgres(url, rest);
}
