import type { BlobStore, ListedBlob } from './blobStore.js';
import type { Database } from './database.js';
import type { BlobFileRow } from './schema.js';

/** How long ago a put must have been interrupted before its remains are deleted. */
const unfinishedMs = 86_400_000;
/** An import stores its blobs before the row of its job or data set: for so long, an owner without a row may be about to get one. */
const unownedMs = 86_400_000;
const blobsInStatement = 500;

/**
 * Deletes blobs without a row that can never get one: their job, data set or weights are gone for a day, or their maker lost its fence
 * before it named them. Returns how many.
 */
export async function removeStrays(db: Database, blobs: BlobStore): Promise<number> {
  await blobs.removeUnfinished(unfinishedMs);
  let count = 0;
  for (const kind of ['jobs', 'datasets', 'weights'] as const) {
    let listed: ListedBlob[] = [];
    const look = async (): Promise<void> => {
      for (const name of await straysAmong(db, kind, listed)) {
        await blobs.remove(name);
        count++;
      }
      listed = [];
    };
    for await (const blob of blobs.list(kind)) {
      listed.push(blob);
      if (listed.length === blobsInStatement) await look();
    }
    await look();
  }
  return count;
}

/**
 * The order of reads makes this safe: blobs are listed before the fences are read, and fences before the rows that name blobs. A blob that
 * can no longer be named either has its row by then or never gets one. In the other order, a job could name it and end in between.
 */
async function straysAmong(
  db: Database,
  kind: 'jobs' | 'datasets' | 'weights',
  listed: readonly ListedBlob[],
): Promise<string[]> {
  if (listed.length === 0) return [];
  const strays: string[] = [];
  for (const blob of listed) if (!(await mayBeNamed(db, kind, blob))) strays.push(blob.name);
  if (strays.length === 0) return [];
  const named = await db.selectFrom('blob_files').select('blob').where('blob', 'in', strays).execute();
  const isNamed = new Set(named.map(({ blob }: Pick<BlobFileRow, 'blob'>) => blob));
  return strays.filter((name) => !isNamed.has(name));
}

async function mayBeNamed(
  db: Database,
  kind: 'jobs' | 'datasets' | 'weights',
  { name, ageMs }: ListedBlob,
): Promise<boolean> {
  const [, id = '', maker, blob = ''] = name.split('/');
  const owner = await ownerOf(db, kind, id);
  if (owner === undefined) return ageMs <= unownedMs;
  const fence = Number(blob.split('-')[1]);
  if (kind === 'weights' || maker === 'uploads') return owner.state === 'uploading';
  if (kind === 'datasets') return owner.state === 'preparing' && owner.fence === fence;
  if (maker === 'exports') {
    const pending = await db
      .selectFrom('artifacts')
      .select('id')
      .where('job_id', '=', id)
      .where('state', '=', 'pending')
      .executeTakeFirst();
    return pending !== undefined;
  }
  return (owner.state === 'starting' || owner.state === 'running') && owner.fence <= fence;
}

/** `fence`: that of its present maker. */
async function ownerOf(
  db: Database,
  kind: 'jobs' | 'datasets' | 'weights',
  id: string,
): Promise<{ state: string; fence: number } | undefined> {
  if (kind === 'jobs')
    return await db
      .selectFrom('jobs')
      .select(['state', 'attempt as fence'])
      .where('id', '=', id)
      .executeTakeFirst();
  if (kind === 'datasets')
    return await db
      .selectFrom('datasets')
      .select(['state', 'epoch as fence'])
      .where('id', '=', id)
      .executeTakeFirst();
  const weights = await db.selectFrom('weights').select('state').where('id', '=', id).executeTakeFirst();
  return weights && { ...weights, fence: 0 }; // only uploads make them
}
