import type { Transaction } from 'kysely';
import type { BlobStore, OpenBlob } from './blobStore.js';
import { FolderUsers } from './folderUsers.js';
import type { Schema } from './schema.js';

/** Makes the files of a folder visible, in a transaction. Throws BlobForgotten: then `give` the folder again. */
export type Naming = (trx: Transaction<Schema>) => Promise<void>;

/** What makes a folder, and its fence; both are in the names of its blobs. */
export interface Maker {
  kind: 'run' | 'exports' | 'uploads' | 'prepared';
  fence: number;
}

/**
 * Folders of the data folder, such as `jobs/…/checkpoints/…`, that other servers need, too. Child processes work on folders of this
 * machine: what they need is taken before, and what they made is given afterwards. If only one server uses the data folder, everything is
 * already there.
 */
export interface Stage {
  /** Whether other servers have data folders of their own. */
  isShared: boolean;
  /**
   * Copies a complete folder to where every server finds it, once a transaction names it; a folder that is never named is deleted later.
   * @param digests SHA-256 by file name, for files whose digest is known
   */
  give(folder: string, maker: Maker, digests?: ReadonlyMap<string, string>): Promise<Naming>;
  /** Gets a complete and verified copy of a folder to this machine. It stays until the returned function is called. Throws BlobDamaged. */
  take(folder: string): Promise<() => void>;
  /**
   * Call this if a folder has wrong content: its copy is then verified completely when it is taken again. False if there is no other copy.
   */
  distrust(folder: string): boolean;
  /** Keeps the copy of a job, data set or weights on this machine until the returned function is called. */
  keep(owner: string): () => void;
  /** Deletes a folder without a row from this machine: now, or when everybody who took it has released it. */
  discard(folder: string): Promise<void>;
  /** Deletes the files of a folder, or all except those to keep, in the transaction that deletes its row. */
  forget(trx: Transaction<Schema>, folder: string, keep?: ReadonlySet<string>): Promise<void>;
  /** A file of a folder, wherever it is; undefined if it does not exist. */
  openFile(folder: string, fileName: string): Promise<OpenBlob | undefined>;
}

/** A blob that was to be used again has been deleted meanwhile. */
export class BlobForgotten extends Error {
  override name = 'BlobForgotten';
}

/** The store has other content than was given. */
export class BlobDamaged extends Error {
  override name = 'BlobDamaged';
}

/** Gives folders, then has `write` name them in its transaction. */
export async function giveThen<T>(
  stage: Stage,
  folders: readonly { folder: string; maker: Maker; digests?: ReadonlyMap<string, string> }[],
  write: (name: Naming) => Promise<T>,
): Promise<T> {
  for (;;) {
    const namings: Naming[] = [];
    for (const { folder, maker, digests } of folders) namings.push(await stage.give(folder, maker, digests));
    try {
      return await write(async (trx) => {
        for (const name of namings) await name(trx);
      });
    } catch (error) {
      if (!(error instanceof BlobForgotten)) throw error;
    }
  }
}

/** The data folder of the only server. */
export function localStage(dataFolder: string, blobs: BlobStore): Stage {
  const users = new FolderUsers(dataFolder);
  return {
    isShared: false,
    give: async () => async () => {},
    take: async (folder) => users.use(folder),
    distrust: () => false,
    keep: (owner) => users.use(owner),
    discard: async (folder) => await users.remove(folder),
    forget: async () => {},
    openFile: async (folder, fileName) => await blobs.openRead(`${folder}/${fileName}`),
  };
}
