import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, type TestContext } from 'vitest';
import { freshDatabase } from './postgres.js';

/** With TEST_STORE=PostgreSQL, tests that use a file in a data folder use a separate database instead. */
const isOnPostgres = process.env.TEST_STORE === 'PostgreSQL';

/** Whether a test's server shares its files with others: then its data folder contains only copies. */
export const sharesFiles = isOnPostgres;

/**
 * Call it first in a test of something that only a store in a file has: on PostgreSQL the test is skipped, with the reason in the report.
 */
export function ofFileAlone({ skip }: Pick<TestContext, 'skip'>, reason: string): void {
  skip(isOnPostgres, reason);
}

export const releasedFolderReason = 'a folder of 0.1.0 has its store in a file';

/** Databases in place of data folders' stores, so that a test that opens a folder again finds its data. */
const urls = new Map<string, string>();
let blobsFolder: string | undefined;

/** The database of a data folder; undefined for the file in it. */
export async function storeUrlOf(dataFolder: string): Promise<string | undefined> {
  if (!isOnPostgres) return undefined;
  const url = urls.get(dataFolder) ?? (await freshDatabase());
  urls.set(dataFolder, url);
  return url;
}

/** The same as settings of a complete server, with a folder for its blobs and a short lease. */
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
