import type { Kysely } from 'kysely';
import type { Schema } from './schema.js';

export type Database = Kysely<Schema>;

export interface DatabaseOptions {
  /** Told the seconds of every statement, for metrics. */
  onStatement?: (seconds: number) => void;
}

/** Why a data folder cannot be used; the message names the file and what to do. */
export class StoreUnusable extends Error {
  override name = 'StoreUnusable';
}

/**
 * Opens the store of a data folder, creates it when the folder is empty, and brings its schema up to date. Holds the
 * folder until it is destroyed or the process dies: a second server gets StoreUnusable with the holder's pid.
 * What a transaction wrote is on the disk when its promise resolves (WAL with synchronous=FULL).
 */
export async function openDatabase(_dataFolder: string, _options: DatabaseOptions = {}): Promise<Database> {
  throw new Error('not yet');
}
