import type { Transaction } from 'kysely';
import type { BlobStore } from './blobStore.js';
import { isAtOrBelow, notePurge } from './chunkDigests.js';
import type { Database } from './database.js';
import type { Schema } from './schema.js';
import type { Stage } from './stage.js';

export interface PurgeParts {
  db: Database;
  blobs: BlobStore;
  stage: Stage;
}

/**
 * Deletes a job or data set for good: its row, by `deleteRow`, and its files. A new one of its id keeps its files, however late this is done
 * and by whichever server. After a crash it can be called again.
 * @param deleteRow false if another server was first
 */
export async function purgeOwner(
  { db, blobs, stage }: PurgeParts,
  owner: string,
  deleteRow: (trx: Transaction<Schema>) => Promise<boolean>,
): Promise<void> {
  // A new one would have files of the same names on the disk: while the row exists, there is none.
  if (!stage.isShared) await blobs.remove(owner);
  await db.transaction().execute(async (trx) => {
    if (!(await deleteRow(trx))) return;
    await trx.deleteFrom('blob_chunks').where(isAtOrBelow('blob', owner)).execute();
    // Names of shared blobs are never given again, but that of their owner is, perhaps while a server still deletes what it found noted.
    const named = await trx
      .deleteFrom('blob_files')
      .where(isAtOrBelow('folder', owner))
      .returning('blob')
      .execute();
    for (const blob of new Set(named.map(({ blob }) => blob))) await notePurge(trx, blob);
  });
}

/** Deletes the blobs that were marked for it. Every step can be repeated. Returns how many names were done. */
export async function doPurges(db: Database, blobs: BlobStore): Promise<number> {
  const noted = await db.selectFrom('purges').select('prefix').execute();
  for (const { prefix } of noted) {
    await blobs.remove(prefix);
    await db.deleteFrom('purges').where('prefix', '=', prefix).execute();
  }
  return noted.length;
}
