import { link, mkdir, readFile, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { replicasNeeded, type RunSpec } from '@relora/engine/plan';
import { kindOf } from '../artifacts/artifact.js';
import type { Job, JobImport } from '../jobs/job.js';
import { writeDevices } from '../jobs/jobDevices.js';
import type { JobJournal } from '../jobs/jobJournal.js';
import { toJob } from '../jobs/jobRow.js';
import { insertUpdates } from '../jobs/jobUpdates.js';
import { registerImported } from '../jobs/journalReaders.js';
import type { Quotas } from '../quotas/quotas.js';
import { folders, syncFolder } from '../store/folders.js';
import type { EventRow, StepSpanRow } from '../store/schema.js';
import { giveThen, type Stage } from '../store/stage.js';
import { nameOf, withId } from '../store/tenantIds.js';
import { manifestFile, type ArchiveFile } from './describeJob.js';
import { ArchiveInvalid, journalRows, type JobRecord } from './readRecord.js';

export interface StoreParts {
  journal: JobJournal;
  stage: Stage;
  quotas: Quotas;
  dataFolder: string;
}

/** A complete job whose parts were all checked. */
export interface ReceivedJob {
  jobId: string;
  tenant: string;
  owner: string;
  spec: RunSpec;
  /** Ids of the data sets that it reads. */
  datasetIds: string[];
  record: JobRecord;
  imported: JobImport;
  /** In the order of the archive; each is at `pathOf` its index. */
  files: readonly ArchiveFile[];
  pathOf(index: number): string;
}

const rowsPerInsert = 200;

/** Puts the files into their places and stores the job as it was. `taken`: another job has that id. Throws QUOTA_EXCEEDED. */
export async function storeJob(
  { journal, stage, quotas, dataFolder }: StoreParts,
  received: ReceivedJob,
): Promise<Job | 'taken'> {
  const { jobId, record } = received;
  const files = filesOfJob(received.files);
  await requireManifests(received);
  const root = folders.job(dataFolder, jobId);
  // The folder may belong to a job, which has one from its first attempt on, or be left from an interrupted import: a row shows which.
  if (await exists(journal, jobId)) return 'taken';
  await rm(root, { recursive: true, force: true });
  const release = stage.keep(`jobs/${jobId}`);
  let mayBeStored = false;
  try {
    await placeFiles(root, received);
    const parentsOf = (fileName: string): string => fileName.split('/').slice(0, 2).join('/');
    const given = [...new Set(files.slice(1).map(({ fileName }) => parentsOf(fileName)))].map((parent) => ({
      folder: `jobs/${jobId}/${parent}`,
      maker: { kind: 'run', fence: record.job.attempt } as const,
      digests: new Map(
        files
          .filter(({ fileName }) => fileName.startsWith(`${parent}/`))
          .map(({ fileName, sha256 }) => [fileName.slice(parent.length + 1), sha256]),
      ),
    }));
    return await giveThen(
      stage,
      given,
      async (name) =>
        await journal.change(async (change) => {
          if ((await change.find(jobId)) !== undefined) return 'taken' as const;
          const bytes = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
          await quotas.requireBytes(change.trx, received.tenant, bytes);
          await name(change.trx);
          const row = await change.adopt(rowOf(received, change.nowMs), record.job.labels);
          await insertParts(change.trx, received, change.nowMs);
          const { id, tenant, state } = row;
          await registerImported(change.trx, { id, tenant, state, lastSequence: row.last_sequence });
          mayBeStored = true; // only the commit is left to fail, which may have succeeded without an answer
          return toJob(row);
        }),
    );
  } catch (error) {
    if (!mayBeStored) await rm(root, { recursive: true, force: true });
    throw error;
  } finally {
    release();
  }
}

/** Data sets are stored separately. */
export function filesOfJob(files: readonly ArchiveFile[]): ArchiveFile[] {
  return files.filter(({ fileName }) => !fileName.startsWith('datasets/'));
}

async function exists(journal: JobJournal, jobId: string): Promise<boolean> {
  return await journal.change(async (change) => (await change.find(jobId)) !== undefined);
}

/** Checks that the files in a checkpoint's manifest are those that were received, so that a resuming run finds it intact. */
async function requireManifests({ record, files, pathOf }: ReceivedJob): Promise<void> {
  for (const { folder, files: listed } of record.checkpoints) {
    const index = files.findIndex(({ fileName }) => fileName === `checkpoints/${folder}/${manifestFile}`);
    const text = await readFile(pathOf(index), 'utf8');
    let named: ArchiveFile[];
    let ofSpec: unknown;
    try {
      const manifest = JSON.parse(text) as { files: Record<string, ArchiveFile>; specSha256: unknown };
      named = Object.values(manifest.files);
      ofSpec = manifest.specSha256;
    } catch {
      throw new ArchiveInvalid(`${manifestFile} of checkpoint ${folder} is a manifest`);
    }
    const expected = record.job.execution?.specSha256 ?? '';
    if (expected !== '' && ofSpec !== expected)
      throw new ArchiveInvalid(
        `checkpoint ${folder} is one of the specification that ran, of SHA-256 ${expected}`,
      );
    for (const { fileName, sizeBytes, sha256 } of named)
      if (
        !listed.some(
          (file) => file.fileName === fileName && file.sizeBytes === sizeBytes && file.sha256 === sha256,
        )
      )
        throw new ArchiveInvalid(`checkpoint ${folder} has the file ${fileName} of its manifest`);
  }
}

/**
 * Identical files, such as the frozen weights of checkpoints, are stored once. Files are linked, not moved: an import that is refused can
 * then continue with what was received.
 */
async function placeFiles(root: string, { files, pathOf }: ReceivedJob): Promise<void> {
  const placed = new Map<string, string>();
  const parents = new Set<string>([root, dirname(root)]);
  for (const [index, { fileName, sha256 }] of files.entries()) {
    if (index === 0 || fileName.startsWith('datasets/')) continue;
    const path = join(root, fileName);
    for (let parent = dirname(path); parent !== root; parent = dirname(parent)) parents.add(parent);
    await mkdir(dirname(path), { recursive: true });
    const twin = placed.get(sha256);
    if (twin === undefined) {
      await link(pathOf(index), path);
      placed.set(sha256, path);
    } else {
      // A file can have only so many links.
      await link(twin, path).catch(async () => await link(pathOf(index), path));
    }
  }
  for (const parent of parents) if (await stat(parent).catch(() => undefined)) await syncFolder(parent);
}

function rowOf({ jobId, tenant, owner, spec, record, imported }: ReceivedJob, nowMs: number) {
  const { job } = record;
  return {
    id: jobId,
    tenant,
    owner,
    name: nameOf(jobId),
    display_name: job.displayName,
    labels: JSON.stringify(job.labels),
    spec: JSON.stringify(spec),
    state: job.state,
    state_reason: job.stateReason,
    failure: job.failure === null ? null : JSON.stringify(job.failure),
    progress: JSON.stringify(job.progress),
    attempt: job.attempt,
    attempts_without_progress: 0,
    not_before_ms: 0,
    stop_request: null,
    last_sequence: job.lastSequence,
    version: 1,
    priority: spec.priority,
    create_time_ms: job.createTimeMs,
    update_time_ms: nowMs,
    start_time_ms: job.startTimeMs,
    end_time_ms: job.endTimeMs,
    execution: job.execution === null ? null : JSON.stringify(job.execution),
    // It only needs its own checkpoints: the one that it began at is in another store.
    origin: null,
    origin_job_id: null,
    base_weights_name: spec.baseWeightsName === null ? null : withId(tenant, spec.baseWeightsName),
    imported: JSON.stringify(imported),
    update_number: record.updates.at(-1)?.number ?? 0,
    devices: writeDevices(spec),
    replicas: spec.replicas,
    replicas_min: replicasNeeded(spec, true),
  } as const;
}

async function insertParts(
  trx: Parameters<typeof insertUpdates>[0],
  { jobId, datasetIds, record, pathOf }: ReceivedJob,
  nowMs: number,
): Promise<void> {
  if (datasetIds.length > 0)
    await trx
      .insertInto('job_datasets')
      .values([...new Set(datasetIds)].map((dataset_id) => ({ job_id: jobId, dataset_id })))
      .execute();
  await insertUpdates(trx, jobId, record.updates, nowMs);
  for (const { attempt, step, folder, sizeBytes, manifestSha256, createTimeMs } of record.checkpoints)
    await trx
      .insertInto('checkpoints')
      .values({
        ...{ job_id: jobId, attempt, step, folder, size_bytes: sizeBytes, corrupt: 0 },
        ...{ manifest_sha256: manifestSha256, create_time_ms: createTimeMs },
      })
      .execute();
  for (const artifact of record.artifacts) {
    await trx
      .insertInto('artifacts')
      .values({
        job_id: jobId,
        id: artifact.id,
        kind: kindOf(artifact.format),
        step: artifact.step,
        size_bytes: artifact.files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        create_time_ms: artifact.createTimeMs,
        state: 'ready',
        format: artifact.format,
        weight_type: artifact.weightType,
        cast_error_max: artifact.castErrorMax,
        difference: artifact.difference === null ? null : JSON.stringify(artifact.difference),
        cycle: artifact.cycle,
        failure: null,
        shard_bytes_max: 5_000_000_000,
        checkpoint_folder: null,
      })
      .execute();
    if (artifact.files.length > 0)
      await trx
        .insertInto('artifact_files')
        .values(
          artifact.files.map(({ fileName, sizeBytes, sha256 }) => ({
            ...{
              job_id: jobId,
              artifact_id: artifact.id,
              file_name: fileName,
              size_bytes: sizeBytes,
              sha256,
            },
          })),
        )
        .execute();
  }
  for (const [index, { timeMs, kind: _, ...body }] of record.evaluations.entries())
    await trx
      .insertInto('model_evaluations')
      .values({ job_id: jobId, number: index + 1, time_ms: timeMs, body: JSON.stringify(body) })
      .execute();
  await insertJournal(trx, jobId, pathOf(0));
}

async function insertJournal(
  trx: Parameters<typeof insertUpdates>[0],
  jobId: string,
  recordPath: string,
): Promise<void> {
  let events: EventRow[] = [];
  let spans: StepSpanRow[] = [];
  const flush = async (): Promise<void> => {
    if (events.length > 0) await trx.insertInto('events').values(events).execute();
    if (spans.length > 0) await trx.insertInto('step_spans').values(spans).execute();
    [events, spans] = [[], []];
  };
  for await (const row of journalRows(recordPath, jobId)) {
    if ('event' in row) events.push(row.event);
    else spans.push(row.span);
    if (events.length + spans.length >= rowsPerInsert) await flush();
  }
  await flush();
}
