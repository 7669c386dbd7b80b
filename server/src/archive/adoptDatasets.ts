import { link, mkdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { PreparedDataset } from '../datasets/dataset.js';
import type { DatasetStore } from '../datasets/datasetStore.js';
import { syncFolder } from '../store/folders.js';
import { giveThen, type Stage } from '../store/stage.js';
import { idIn } from '../store/tenantIds.js';
import { TaskFailed, type TaskRunner } from '../trainer/taskRunner.js';
import type { ArchiveFile } from './describeJob.js';
import type { JobImports } from './jobImports.js';
import type { LineOf } from './jobRecord.js';
import { ArchiveInvalid, type JobRecord } from './readRecord.js';

export interface AdoptParts {
  datasets: DatasetStore;
  imports: JobImports;
  tasks: Pick<TaskRunner, 'checkDataset'>;
  stage: Stage;
}

/** The data sets of a received archive. */
export interface ReceivedDatasets {
  tenant: string;
  owner: string;
  record: JobRecord;
  files: readonly ArchiveFile[];
  /** Path of a received file, by its index. */
  pathOf(index: number): string;
  signal: AbortSignal;
}

/**
 * Stores the data sets of an archive whose names are not taken here, each after reading it as a run would. A data set that already has such
 * a name stays; whether it is the same is checked later, for all data sets alike. Throws ArchiveInvalid, QUOTA_EXCEEDED.
 */
export async function adoptDatasets(parts: AdoptParts, received: ReceivedDatasets): Promise<void> {
  for (const line of received.record.datasets) {
    const id = datasetIdIn(received.tenant, line.name);
    await parts.imports.inTurn(`datasets/${id}`, async () => {
      if (!(await parts.datasets.hasRow(id))) await adopt(parts, received, line, id);
    });
  }
}

/** Bytes that the data sets whose names are not taken here will count: their tokens, and the texts that they were made from. */
export async function bytesToAdopt(
  datasets: DatasetStore,
  { tenant, record }: Pick<ReceivedDatasets, 'tenant' | 'record'>,
): Promise<number> {
  let bytes = 0;
  for (const { name, files, sources } of record.datasets)
    if (!(await datasets.hasRow(datasetIdIn(tenant, name))))
      for (const { sizeBytes } of [...files, ...sources]) bytes += sizeBytes;
  return bytes;
}

function datasetIdIn(tenant: string, name: string): string {
  return idIn(tenant, name.replace(/^datasets\//, ''));
}

async function adopt(
  { datasets, tasks, stage }: AdoptParts,
  { tenant, owner, files, pathOf, signal }: ReceivedDatasets,
  line: LineOf<'dataset'>,
  id: string,
): Promise<void> {
  const folder = datasets.preparedFolder(id);
  const temporary = `${folder}.import`;
  const release = stage.keep(`datasets/${id}`);
  try {
    await rm(temporary, { recursive: true, force: true }); // left by a crash: nobody else uses it in our turn
    await mkdir(temporary, { recursive: true });
    for (const [index, { fileName }] of files.entries())
      if (fileName.startsWith(`${line.name}/`))
        // Linked, so that the received files stay until the whole job is stored: an import that is refused for another reason can continue
        // with them.
        await link(pathOf(index), join(temporary, fileName.slice(line.name.length + 1)));
    await syncFolder(temporary);
    const prepared = await checked(tasks, line, temporary, signal);
    // That may have taken minutes, in which a client can have uploaded a data set of that name.
    if (await datasets.hasRow(id)) return;
    await rm(folder, { recursive: true, force: true });
    await rename(temporary, folder);
    await syncFolder(join(folder, '..'));
    const given = {
      folder: `datasets/${id}/prepared`,
      maker: { kind: 'prepared', fence: 0 } as const,
      digests: new Map(line.files.map(({ fileName, sha256 }) => [fileName, sha256])),
    };
    const { displayName, labels, spec, createTimeMs, sources } = line;
    const about = { id, tenant, owner, displayName, labels, createTimeMs, spec, prepared, files: sources };
    await giveThen(stage, [given], async (name) => await datasets.adopt(about, name));
  } finally {
    await rm(temporary, { recursive: true, force: true });
    release();
  }
}

/** Reads it in a separate process, like all files of clients. */
async function checked(
  tasks: AdoptParts['tasks'],
  { name, manifestSha256, sources }: LineOf<'dataset'>,
  folder: string,
  signal: AbortSignal,
): Promise<PreparedDataset> {
  try {
    const found = await tasks.checkDataset(folder, signal);
    if (found.manifestSha256 === manifestSha256)
      return { ...found, formats: sources.map(({ format }) => format) };
  } catch (error) {
    if (!(error instanceof TaskFailed) || signal.aborted) throw error;
    throw new ArchiveInvalid(`${name} is a data set that can be read: ${error.message}`);
  }
  throw new ArchiveInvalid(`${name} has the manifest of SHA-256 ${manifestSha256}`);
}
