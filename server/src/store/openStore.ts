import { openBlobs } from './openBlobs.js';
import { SharedStage } from './sharedStage.js';
import type { StoreUrl } from './storeUrl.js';
import { FolderBlobs, type BlobStore } from './blobStore.js';
import { LocalFeed, type ChangeFeed } from './changeFeed.js';
import { openDatabase, type Database, type DatabaseOptions } from './database.js';
import { PostgresFeed } from './postgresFeed.js';
import { lockFolder } from './folderLock.js';
import { Leases, type LeaseOptions } from './leases.js';
import { localStage, type Stage } from './stage.js';
import { StoreIdentity } from './storeIdentity.js';
import { readStoreInfo, type StoreInfo } from './storeInfo.js';

/** How often servers poll for changes of each other, in case notifications got lost. */
const pollMs = 2000;

/** The database, its own information, and how its changes are announced. */
export interface Store {
  db: Database;
  info: StoreInfo;
  identity: StoreIdentity;
  feed: ChangeFeed;
  leases: Leases;
  blobs: BlobStore;
  stage: Stage;
  close(): Promise<void>;
}

export interface StoreOptions extends DatabaseOptions, Partial<Pick<LeaseOptions, 'leaseMs'>> {
  /** Null: blobs are in the data folder. */
  blobsUrl?: StoreUrl | null;
  /** See SharedStageOptions. */
  cacheBytesMax?: number;
}

/** Opens the store of a data folder; see openDatabase. */
export async function openStore(
  dataFolder: string,
  { leaseMs = 30_000, blobsUrl = null, cacheBytesMax = 0, ...options }: StoreOptions = {},
): Promise<Store> {
  const { url } = options;
  // A store in a file locks its folder by itself.
  const unlock = url !== undefined && blobsUrl !== null ? lockFolder(dataFolder) : () => {};
  const db = await openDatabase(dataFolder, options).catch((error: unknown) => {
    unlock();
    throw error;
  });
  let feed: ChangeFeed | undefined;
  try {
    const info = await readStoreInfo(db, dataFolder);
    const identity = new StoreIdentity(db, info.incarnation, url !== undefined);
    const look = async (): Promise<void> => await identity.look();
    const opened = (feed =
      url === undefined ? new LocalFeed() : await PostgresFeed.open(url, db, pollMs, look));
    const blobs =
      blobsUrl === null ? new FolderBlobs(dataFolder) : await openBlobs(blobsUrl, info.incarnation);
    const stage =
      blobsUrl === null
        ? localStage(dataFolder, blobs)
        : await SharedStage.open(db, blobs, dataFolder, { cacheBytesMax });
    // A file is used by one process, so its server is the only one.
    const leases = new Leases(db, url === undefined ? null : { leaseMs });
    await leases.requireClock();
    const close = async (): Promise<void> => {
      await leases.stop().catch(() => {}); // others notice by themselves
      await opened.close();
      blobs.close();
      await db.destroy();
      unlock();
    };
    return { db, info, identity, feed: opened, leases, blobs, stage, close };
  } catch (error) {
    await feed?.close();
    await db.destroy();
    unlock();
    throw error;
  }
}
