import type { BlobStore } from './blobStore.js';
import type { Database } from './database.js';
import type { BlobFileRow } from './schema.js';

/** How long ago a put must have been interrupted before its remains are deleted. */
const unfinishedMs = 86_400_000;
const namesInStatement = 500;

/**
 * Deletes blobs without a row that can never get one: their job, data set or weights are gone, or their maker lost its fence before it
 * named them. Returns how many.
 */
export async function removeStrays(db: Database, blobs: BlobStore): Promise<number> {
  await blobs.removeUnfinished(unfinishedMs);
  let count = 0;
  for (const kind of ['jobs', 'datasets', 'weights'] as const) {
    let names: string[] = [];
    const look = async (): Promise<void> => {
      for (const name of await straysAmong(db, kind, names)) {
        await blobs.remove(name);
        count++;
      }
      names = [];
    };
    for await (const { name } of blobs.list(kind)) {
      names.push(name);
      if (names.length === namesInStatement) await look();
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
  names: readonly string[],
): Promise<string[]> {
  if (names.length === 0) return [];
  const strays: string[] = [];
  for (const name of names) if (!(await mayBeNamed(db, kind, name))) strays.push(name);
  if (strays.length === 0) return [];
  const named = await db.selectFrom('blob_files').select('blob').where('blob', 'in', strays).execute();
  const isNamed = new Set(named.map(({ blob }: Pick<BlobFileRow, 'blob'>) => blob));
  return strays.filter((name) => !isNamed.has(name));
}

async function mayBeNamed(
  db: Database,
  kind: 'jobs' | 'datasets' | 'weights',
  name: string,
): Promise<boolean> {
  const [, id = '', maker, blob = ''] = name.split('/');
  const fence = Number(blob.split('-')[1]);
  if (kind === 'weights') return (await stateOf(db, kind, id)) === 'uploading';
  if (kind === 'datasets') {
    const state = await stateOf(db, kind, id);
    if (maker === 'uploads') return state === 'uploading';
    const row = await db.selectFrom('datasets').select('epoch').where('id', '=', id).executeTakeFirst();
    return state === 'preparing' && row?.epoch === fence;
  }
  if (maker === 'exports') {
    const pending = await db
      .selectFrom('artifacts')
      .select('id')
      .where('job_id', '=', id)
      .where('state', '=', 'pending')
      .executeTakeFirst();
    return pending !== undefined;
  }
  const job = await db
    .selectFrom('jobs')
    .select(['state', 'attempt'])
    .where('id', '=', id)
    .executeTakeFirst();
  return job !== undefined && (job.state === 'starting' || job.state === 'running') && job.attempt <= fence;
}

async function stateOf(db: Database, table: 'datasets' | 'weights', id: string): Promise<string | undefined> {
  return (await db.selectFrom(table).select('state').where('id', '=', id).executeTakeFirst())?.state;
}
