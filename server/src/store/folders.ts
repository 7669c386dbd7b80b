import { open, readdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { withId } from './tenantIds.js';

/** The paths in a data folder. Names on disk are ids that we checked or made, never names from clients. */
export const folders = {
  jobs: (dataFolder: string) => join(dataFolder, 'jobs'),
  job: (dataFolder: string, jobId: string) => join(dataFolder, 'jobs', jobId),
  checkpoints: (dataFolder: string, jobId: string) => join(dataFolder, 'jobs', jobId, 'checkpoints'),
  start: (dataFolder: string, jobId: string) => join(dataFolder, 'jobs', jobId, 'start'),
  artifacts: (dataFolder: string, jobId: string) => join(dataFolder, 'jobs', jobId, 'artifacts'),
  log: (dataFolder: string, jobId: string) => join(dataFolder, 'jobs', jobId, 'log'),
  exports: (dataFolder: string, jobId: string) => join(dataFolder, 'jobs', jobId, 'exports'),
  weights: (dataFolder: string, weightsId: string) => join(dataFolder, 'weights', weightsId),
  datasets: (dataFolder: string) => join(dataFolder, 'datasets'),
  dataset: (dataFolder: string, datasetId: string) => join(dataFolder, 'datasets', datasetId),
  uploads: (dataFolder: string, datasetId: string) => join(dataFolder, 'datasets', datasetId, 'uploads'),
  /** Imports in progress, each in a folder of its own. */
  imports: (dataFolder: string) => join(dataFolder, 'imports'),
  /** Copies in progress; see sharedStage.ts. */
  staging: (dataFolder: string) => join(dataFolder, 'staging'),
  prepared: (dataFolder: string, datasetId: string) => join(dataFolder, 'datasets', datasetId, 'prepared'),
} as const;

/** Folder, relative to the data folder, of named weights: weights/… or jobs/…/artifacts/…; null for others. */
export function namedWeights(tenant: string, name: string | null): string | null {
  const [kind, id = '', , artifactId = ''] = name === null ? [] : withId(tenant, name).split('/');
  if (kind === 'weights') return `weights/${id}`;
  return kind === 'jobs' ? `jobs/${id}/artifacts/${artifactId}` : null;
}

/** Folder name of a checkpoint; undefined if the path is not that of a checkpoint of this job. */
export function checkpointName(dataFolder: string, jobId: string, path: string): string | undefined {
  const name = basename(path);
  return path === join(folders.checkpoints(dataFolder, jobId), name) && /^step-[0-9]+-[0-9]+$/.test(name)
    ? name
    : undefined;
}

/** Makes the names in a folder durable: otherwise a crash can lose a file even though its content was synced. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Removes every entry of a folder except the given ones; the folder may be missing. Returns the removed names. */
export async function removeOthers(folder: string, keep: ReadonlySet<string>): Promise<string[]> {
  return await removeEntries(folder, (name) => !keep.has(name));
}

/** Removes unfinished files with temporary names, `.tmp-…`. Returns the removed names. */
export async function removeUnfinished(folder: string): Promise<string[]> {
  return await removeEntries(folder, (name) => name.startsWith('.tmp-'));
}

async function removeEntries(folder: string, isDoomed: (name: string) => boolean): Promise<string[]> {
  const entries = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  const removed = entries.filter(isDoomed).map((name) => join(folder, name));
  for (const path of removed) await rm(path, { recursive: true, force: true });
  return removed;
}
