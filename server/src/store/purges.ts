import type { BlobStore } from './blobStore.js';
import type { Database } from './database.js';

/** Deletes the blobs that were marked for it. Every step can be repeated. Returns how many names were done. */
export async function doPurges(db: Database, blobs: BlobStore): Promise<number> {
  const noted = await db.selectFrom('purges').select('prefix').execute();
  for (const { prefix } of noted) {
    await blobs.remove(prefix);
    await db.deleteFrom('purges').where('prefix', '=', prefix).execute();
  }
  return noted.length;
}
