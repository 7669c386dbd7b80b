import { LocalFeed, type ChangeFeed } from './changeFeed.js';
import { openDatabase, type Database, type DatabaseOptions } from './database.js';
import { PostgresFeed } from './postgresFeed.js';
import { readStoreInfo, type StoreInfo } from './storeInfo.js';

/** How often servers look for changes of each other that they did not hear of. */
const pollMs = 2000;

/** The database, what it knows of itself, and how its changes are heard of. */
export interface Store {
  db: Database;
  info: StoreInfo;
  feed: ChangeFeed;
  close(): Promise<void>;
}

/** Opens the store of a data folder; see openDatabase. */
export async function openStore(dataFolder: string, options: DatabaseOptions = {}): Promise<Store> {
  const db = await openDatabase(dataFolder, options);
  try {
    const info = await readStoreInfo(db, dataFolder);
    const feed =
      options.url === undefined ? new LocalFeed() : await PostgresFeed.open(options.url, db, pollMs);
    const close = async (): Promise<void> => {
      await feed.close();
      await db.destroy();
    };
    return { db, info, feed, close };
  } catch (error) {
    await db.destroy();
    throw error;
  }
}
