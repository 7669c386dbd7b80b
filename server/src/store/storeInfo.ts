import { randomBytes, randomUUID } from 'node:crypto';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Database } from './database.js';
import type { StoreInfoRow } from './schema.js';

export interface StoreInfo {
  /** Created with the store. It identifies cursors from another store, such as one before it was restored from a backup. */
  incarnation: string;
  /** Seals page tokens, which therefore outlive the server and are valid on every server of the store. */
  pageTokenKey: Buffer;
}

/** Reads the store's information about itself, and creates it in a new store. */
export async function readStoreInfo(db: Database, dataFolder: string): Promise<StoreInfo> {
  const keyFile = join(dataFolder, 'page-token.key');
  const known = await db.selectFrom('store_info').selectAll().execute();
  if (known.length > 0) return fromRows(known);
  const made = {
    incarnation: randomUUID(),
    // Version 0.1 kept the key in a file: tokens that it wrote stay valid.
    page_token_key: (readKey(keyFile) ?? randomBytes(32)).toString('hex'),
  };
  await db
    .insertInto('store_info')
    .values(Object.entries(made).map(([key, value]) => ({ key, value })))
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  rmSync(keyFile, { force: true });
  return fromRows(await db.selectFrom('store_info').selectAll().execute());
}

function fromRows(rows: StoreInfoRow[]): StoreInfo {
  const info = Object.fromEntries(rows.map(({ key, value }) => [key, value])) as {
    incarnation: string;
    page_token_key: string;
  };
  return { incarnation: info.incarnation, pageTokenKey: Buffer.from(info.page_token_key, 'hex') };
}

function readKey(file: string): Buffer | undefined {
  if (!existsSync(file)) return undefined;
  const key = readFileSync(file);
  return key.length === 32 ? key : undefined;
}
