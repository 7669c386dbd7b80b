import type { Transaction } from 'kysely';
import type { BlobStore, OpenBlob } from './blobStore.js';
import type { Schema } from './schema.js';

/** Names the files of a folder, in the transaction that makes the folder visible. Throws BlobForgotten: then give it again. */
export type Naming = (trx: Transaction<Schema>) => Promise<void>;

/** Who makes a folder, and under which fence; part of the names of its blobs. */
export interface Maker {
  kind: 'run' | 'exports' | 'uploads' | 'prepared';
  fence: number;
}

/**
 * Folders of the data folder, such as `jobs/…/checkpoints/…`, that other servers need, too. Children work on folders of this
 * machine: what they need is taken before, and what they made is given afterwards. Where one server has the data folder
 * alone, all of it is there already.
 */
export interface Stage {
  /** Whether other servers have data folders of their own. */
  isShared: boolean;
  /**
   * Copies a complete folder to where every server finds it. Nobody does until a transaction names it; one that is never named
   * is thrown away later.
   * @param digests SHA-256 by file name, of those that are known
   */
  give(folder: string, maker: Maker, digests?: ReadonlyMap<string, string>): Promise<Naming>;
  /** Has a folder on this machine, whole and checked. It stays until the function that is returned was called. Throws BlobDamaged. */
  take(folder: string): Promise<() => void>;
  /** A folder was found to be wrong: a copy of it is read whole when it is taken again. False where there is nothing but it. */
  distrust(folder: string): boolean;
  /** Keeps what this machine has of a job, data set or weights until the function that is returned was called. */
  keep(owner: string): () => void;
  /** In the transaction that deletes a folder's row: its files, or all but those to keep, are thrown away. */
  forget(trx: Transaction<Schema>, folder: string, keep?: ReadonlySet<string>): Promise<void>;
  /** A file of a folder, wherever it lies; undefined where there is none. */
  openFile(folder: string, fileName: string): Promise<OpenBlob | undefined>;
}

/** A blob that a naming was to use again was thrown away meanwhile. */
export class BlobForgotten extends Error {
  override name = 'BlobForgotten';
}

/** What the store holds is not what was given. */
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

const nothing = (): void => {};

/** The data folder of the only server. */
export const localStage = (blobs: BlobStore): Stage => ({
  isShared: false,
  give: async () => async () => {},
  take: async () => nothing,
  distrust: () => false,
  keep: () => nothing,
  forget: async () => {},
  openFile: async (folder, fileName) => await blobs.openRead(`${folder}/${fileName}`),
});
