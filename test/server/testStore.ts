import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, type TestContext } from 'vitest';
import { freshDatabase } from './postgres.js';

/** With TEST_STORE=PostgreSQL what is tested on the file in a data folder is tested on a database of its own. */
const isOnPostgres = process.env.TEST_STORE === 'PostgreSQL';

/** Whether a whole server of a test shares its files with others: then what its data folder has is a copy. */
export const sharesFiles = isOnPostgres;

/** First in a test of what only a store in a file has: on PostgreSQL it is skipped, with the reason in the report. */
export function ofFileAlone({ skip }: Pick<TestContext, 'skip'>, reason: string): void {
  skip(isOnPostgres, reason);
}

export const releasedFolderReason = 'a folder of 0.1.0 has its store in a file';

/** Databases that stand for the store of a data folder, so that a test that opens the folder again finds it. */
const urls = new Map<string, string>();
let blobsFolder: string | undefined;

/** The database of a data folder; undefined for the file in it. */
export async function storeUrlOf(dataFolder: string): Promise<string | undefined> {
  if (!isOnPostgres) return undefined;
  const url = urls.get(dataFolder) ?? (await freshDatabase());
  urls.set(dataFolder, url);
  return url;
}

/** The same as settings of a whole server, with a folder for its blobs and a lease that a test can wait for. */
export async function storeSettings(dataFolder: string): Promise<Record<string, string>> {
  const url = await storeUrlOf(dataFolder);
  if (url === undefined) return {};
  blobsFolder ??= mkdtempSync(join(tmpdir(), 'relora-blobs-'));
  const folder = join(blobsFolder, encodeURIComponent(dataFolder));
  mkdirSync(folder, { recursive: true });
  return {
    RELORA_DATABASE_URL: url,
    RELORA_STORE_URL: pathToFileURL(folder).href,
    RELORA_LEASE_SECONDS: '2',
  };
}

afterAll(() => {
  if (blobsFolder !== undefined) rmSync(blobsFolder, { recursive: true, force: true });
});
