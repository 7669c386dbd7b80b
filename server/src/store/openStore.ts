import { LocalFeed, type ChangeFeed } from './changeFeed.js';
import { openDatabase, type Database, type DatabaseOptions } from './database.js';
import { PostgresFeed } from './postgresFeed.js';
import { Leases, type LeaseOptions } from './leases.js';
import { readStoreInfo, type StoreInfo } from './storeInfo.js';

/** How often servers look for changes of each other that they did not hear of. */
const pollMs = 2000;

/** The database, what it knows of itself, and how its changes are heard of. */
export interface Store {
  db: Database;
  info: StoreInfo;
  feed: ChangeFeed;
  leases: Leases;
  close(): Promise<void>;
}

/** Opens the store of a data folder; see openDatabase. */
export async function openStore(
  dataFolder: string,
  { leaseMs = 30_000, ...options }: DatabaseOptions & Partial<Pick<LeaseOptions, 'leaseMs'>> = {},
): Promise<Store> {
  const db = await openDatabase(dataFolder, options);
  try {
    const info = await readStoreInfo(db, dataFolder);
    const feed =
      options.url === undefined ? new LocalFeed() : await PostgresFeed.open(options.url, db, pollMs);
    // A file is held by one process; its server is alone.
    const leases = new Leases(db, options.url === undefined ? null : { leaseMs });
    const close = async (): Promise<void> => {
      await leases.stop().catch(() => {}); // others notice by themselves
      await feed.close();
      await db.destroy();
    };
    return { db, info, feed, leases, close };
  } catch (error) {
    await db.destroy();
    throw error;
  }
}
