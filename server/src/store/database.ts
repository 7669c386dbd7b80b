import type { Kysely } from 'kysely';
import type { Schema } from './schema.js';
import { openPostgres } from './postgres.js';
import { openSqlite } from './sqlite.js';

/**
 * The store, over SQLite in a data folder or over PostgreSQL: one schema and one set of queries. SQLite has one connection and
 * a mutex around it, which a transaction holds from its begin to its commit; PostgreSQL has several, so a transaction locks
 * with `for update` what it reads before it writes (SQLite's compiler leaves that out). A transaction awaits nothing but its
 * own statements.
 */
export type Database = Kysely<Schema>;

export interface DatabaseOptions {
  /** Called with the seconds of every statement, for metrics. */
  onStatement?: (seconds: number) => void;
  /** `postgres://…`; SQLite in the data folder when it is left out. */
  url?: string;
  /** Of a SQLite file: up to this size all of it is checked when it is opened; any size without. */
  wholeCheckBytesMax?: number;
  /** Of the file that is given up where a full disk keeps SQLite from being opened or closed; 0 for none. */
  reserveBytes?: number;
}

/**
 * Opens the store of a data folder, creates it where there is none, and brings its schema up to date. What a transaction
 * wrote is durable when its promise resolves. Throws StoreUnusable.
 */
export async function openDatabase(dataFolder: string, options: DatabaseOptions = {}): Promise<Database> {
  const { url, ...rest } = options;
  return url === undefined ? await openSqlite(dataFolder, rest) : await openPostgres(url, rest);
}
