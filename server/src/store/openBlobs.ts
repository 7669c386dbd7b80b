import { randomBytes } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { FolderBlobs, type BlobStore } from './blobStore.js';
import { S3Blobs } from './s3Blobs.js';
import { StoreUnusable } from './storeError.js';
import type { StoreUrl } from './storeUrl.js';

/** Contains the id of the store that the blobs belong to. */
const markerName = 'store/incarnation';
/** Prefix for the id of a store that is claiming an empty place. */
const comingPrefix = 'store/coming-';

/** Opens the blobs of a store, checks that they can be written and read, and that they belong to no other store. Throws StoreUnusable. */
export async function openBlobs(url: StoreUrl, incarnation: string): Promise<BlobStore> {
  const where = url.kind === 'folder' ? url.path : `s3://${url.bucket}/${url.prefix}`;
  // The folder is not created here: if a mount is missing, each server would get a folder of its own.
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
 * Claims an empty place for a store and returns the id of its owner. Two stores may find it empty at the same time, and S3 has no lock. So
 * each first writes its claim, then looks for other claims: at least one sees the other, and gives way.
 */
async function take(blobs: BlobStore, incarnation: string): Promise<string> {
  const coming = `${comingPrefix}${incarnation}`;
  await blobs.put(coming, textSource(incarnation));
  let owner = incarnation;
  for await (const { name } of blobs.list('store'))
    if (name.startsWith(comingPrefix) && name !== coming) owner = name.slice(comingPrefix.length);
  // Read after the list: a store that claimed the place before has removed its claim, but left the marker.
  owner = (await readText(blobs, markerName)) ?? owner;
  if (owner === incarnation) await blobs.put(markerName, textSource(incarnation));
  await blobs.remove(coming);
  return owner;
}

/** A restored store has a new id, and keeps its blobs. */
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
