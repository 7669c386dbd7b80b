import { randomBytes } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { FolderBlobs, type BlobStore } from './blobStore.js';
import { S3Blobs } from './s3Blobs.js';
import { StoreUnusable } from './storeError.js';
import type { StoreUrl } from './storeUrl.js';

/** Names the store whose blobs these are. */
const markerName = 'store/incarnation';
/** Before the name of a store that takes a place for its own. */
const comingPrefix = 'store/coming-';

/** Opens the blobs of a store, and sees that they can be written and read, and are of no other store. Throws StoreUnusable. */
export async function openBlobs(url: StoreUrl, incarnation: string): Promise<BlobStore> {
  const where = url.kind === 'folder' ? url.path : `s3://${url.bucket}/${url.prefix}`;
  // Not made here: where a mount is missing, each server would have a folder of its own.
  if (url.kind === 'folder' && !(await stat(url.path).catch(() => undefined))?.isDirectory())
    throw new StoreUnusable(`${where} is no folder: mount it, or make it once`);
  const blobs = url.kind === 'folder' ? new FolderBlobs(url.path) : await S3Blobs.open(url);
  try {
    await probe(blobs);
  } catch (error) {
    throw new StoreUnusable(
      `${where} cannot be used (${(error as Error).message}): check that it exists, and that this server may write, read, list and delete there`,
      { cause: error },
    );
  }
  const owner = (await readText(blobs, markerName)) ?? (await take(blobs, incarnation));
  if (owner !== incarnation)
    throw new StoreUnusable(
      `${where} belongs to another database (store ${owner}, not ${incarnation}): name another RELORA_STORE_URL, or the database that belongs to it`,
    );
  return blobs;
}

/**
 * Marks an empty place as that of a store; answers whose it is. Two stores may find it empty at once, and S3 has no lock: each first
 * writes that it comes, then looks whether another one does. At least one sees the other, and gives way.
 */
async function take(blobs: BlobStore, incarnation: string): Promise<string> {
  const coming = `${comingPrefix}${incarnation}`;
  await blobs.put(coming, textSource(incarnation));
  let owner = incarnation;
  for await (const { name } of blobs.list('store'))
    if (name.startsWith(comingPrefix) && name !== coming) owner = name.slice(comingPrefix.length);
  // After the look: who came and went before it has left the mark.
  owner = (await readText(blobs, markerName)) ?? owner;
  if (owner === incarnation) await blobs.put(markerName, textSource(incarnation));
  await blobs.remove(coming);
  return owner;
}

/** After a restore the store is another one, and takes its blobs along. */
export async function claimBlobs(blobs: BlobStore, incarnation: string): Promise<void> {
  await blobs.put(markerName, textSource(incarnation));
}

async function probe(blobs: BlobStore): Promise<void> {
  const word = randomBytes(8).toString('hex');
  const name = `store/probe-${word}`;
  await blobs.put(name, textSource(word));
  const read = await readText(blobs, name);
  if (read !== word) throw new Error(`what was written was read back as ${JSON.stringify(read)}`);
  let isListed = false;
  for await (const entry of blobs.list('store')) isListed ||= entry.name === name;
  if (!isListed) throw new Error('what was written is not listed');
  await blobs.remove(name);
}

async function readText(blobs: BlobStore, name: string): Promise<string | undefined> {
  const blob = await blobs.openRead(name);
  if (blob === undefined) return undefined;
  try {
    const pieces: Uint8Array[] = [];
    for await (const piece of blob.read(0, blob.sizeBytes, 1 << 16)) pieces.push(piece);
    return Buffer.concat(pieces).toString('utf8');
  } finally {
    await blob.close();
  }
}

async function* textSource(text: string): AsyncGenerator<Uint8Array> {
  yield Buffer.from(text);
}
