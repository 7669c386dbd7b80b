import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import { readDatasetNames, readStoredRunSpec, specHash, type RunSpec } from '@relora/engine/plan';
import {
  JobSpec,
  type DeepPartial,
  type ExportJobRequest,
  type ExportJobResponse,
  type ImportJobHeader,
  type ImportJobRequest,
  type ImportJobResponse,
} from '@relora/sdk/contract';
import { adoptDatasets, bytesToAdopt } from '../archive/adoptDatasets.js';
import { damageIn, orDamaged } from '../archive/damaged.js';
import { findArchiveFile, type ArchiveFile } from '../archive/describeJob.js';
import { archiveVersion, recordFile } from '../archive/jobRecord.js';
import { ArchiveInvalid, readRecord, requireFiles, type JobRecord } from '../archive/readRecord.js';
import { requireExported, takeSnapshot } from '../archive/snapshot.js';
import { filesOfJob, storeJob } from '../archive/storeJob.js';
import type { DatasetHead } from '../datasets/dataset.js';
import { quote, ServiceError } from '../errors.js';
import type { CallContext } from '../grpc/service.js';
import type { Job, JobImport } from '../jobs/job.js';
import { folders } from '../store/folders.js';
import { idIn, nameOf, tenantOf } from '../store/tenantIds.js';
import type { AdmitParts } from './admitJob.js';
import { findBaseWeights } from './baseWeights.js';
import { FieldChecks } from './fieldChecks.js';
import { parseJobSpec } from './jobSpec.js';
import { openArtifactFile } from './openArtifactFile.js';
import type { ApiParts } from './parts.js';
import { invalid, receiveChunks, unfinished } from './receiveUpload.js';
import { requireJob } from './requireJob.js';
import { datasetIdOf, parseJobName } from './resourceNames.js';
import { requireUndeleted } from './submitJob.js';
import { toJob, toSpec } from './toProto.js';
import type { Principal } from '../access/principal.js';

type Context = Pick<CallContext, 'signal' | 'caller'>;

export type JobArchiveParts = AdmitParts &
  Pick<
    ApiParts,
    | 'journal'
    | 'checkpoints'
    | 'identity'
    | 'metrics'
    | 'imports'
    | 'quotas'
    | 'downloadPlaces'
    | 'uploadPlaces'
    | 'tasks'
  >;

const pieceBytes = 256 * 1024;
const filesMax = 20_000;

/** The archive of a job with its record, or one of its other files from an offset. */
export async function* exportJob(
  parts: JobArchiveParts,
  request: ExportJobRequest,
  { signal, caller }: Context,
): AsyncGenerator<DeepPartial<ExportJobResponse>> {
  const { store, downloadPlaces, metrics, stopping, config } = parts;
  const { fileName, offsetBytes, withDatasets } = request;
  const job = await requireJob(store, parseJobName(caller.tenant, 'name', request.name));
  requireUndeleted(job);
  requireExported(job);
  if (fileName === '' && offsetBytes !== 0)
    throw invalid(
      'offset_bytes',
      '0 without file_name, since the archive comes from its beginning',
      String(offsetBytes),
    );
  using _place = downloadPlaces.take();
  const { dataFolder } = config;
  const snapshot =
    fileName === '' ? await takeSnapshot({ ...parts, dataFolder }, job, { withDatasets }) : undefined;
  try {
    if (snapshot !== undefined) {
      const { files } = snapshot;
      const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
      yield { archive: { formatVersion: archiveVersion, job: `jobs/${nameOf(job.id)}`, files, sizeBytes } };
    }
    let offset = offsetBytes;
    for await (const data of snapshot?.record() ?? keptBytes(parts, job, fileName, offsetBytes)) {
      if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
      if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
      yield { offsetBytes: offset, data };
      offset += data.length;
      metrics.sentBytes.inc(data.length);
    }
  } finally {
    await snapshot?.close();
  }
}

/** Pieces of a file of a checkpoint, an artifact or a data set; the client compares the whole with its digest. */
async function* keptBytes(
  parts: JobArchiveParts,
  job: Job,
  fileName: string,
  start: number,
): AsyncGenerator<Buffer> {
  const { artifacts, config, stage } = parts;
  const file = await findArchiveFile(parts, job, fileName);
  if (file === undefined)
    throw invalid(
      'file_name',
      `a file of the archive, which the call without a name lists; ${recordFile} comes with that`,
      quote(fileName),
    );
  if (start < 0 || start > file.sizeBytes)
    throw new ServiceError('OFFSET_BEYOND_END', {
      fileName,
      offsetBytes: start,
      sizeBytes: file.sizeBytes,
    });
  const [kind, id = '', ...rest] = fileName.split('/');
  if (kind === 'artifacts') {
    const artifact = (await artifacts.find(job.id, id))!;
    const opened = await openArtifactFile(artifacts, artifact, rest.join('/'));
    try {
      yield* opened.pieces(start);
    } finally {
      await opened.close();
    }
    return;
  }
  const tenant = tenantOf(job.id);
  const [taken, folder] =
    kind === 'datasets'
      ? [`datasets/${idIn(tenant, id)}/prepared`, folders.prepared(config.dataFolder, idIn(tenant, id))]
      : [`jobs/${job.id}/checkpoints/${id}`, join(folders.checkpoints(config.dataFolder, job.id), id)];
  const owner = kind === 'datasets' ? `datasets/${id}` : `jobs/${nameOf(job.id)}`;
  const release = await orDamaged(owner, async () => await stage.take(taken));
  try {
    const path = join(folder, rest.join('/'));
    for await (const data of createReadStream(path, { start, highWaterMark: pieceBytes }))
      yield data as Buffer;
  } catch (error) {
    throw damageIn(owner, error) ?? error;
  } finally {
    release();
  }
}

/** Receives an archive, possibly in several calls, and stores its job once it is complete. */
export async function importJob(
  parts: JobArchiveParts,
  request: AsyncIterable<ImportJobRequest>,
  { signal, caller }: Context,
): Promise<ImportJobResponse> {
  const { config, imports, metrics, store } = parts;
  const messages = request[Symbol.asyncIterator]();
  const first = await messages.next();
  if (first.done === true || first.value.header === undefined)
    throw invalid('header', 'the first message', first.done === true ? 'nothing' : 'a chunk');
  const { header } = first.value;
  const { files, jobId } = parseHeader(header, caller.tenant);
  const key = imports.keyOf(jobId, files);
  const known = await store.find(jobId);
  if (known !== undefined) {
    // The answer to an import that succeeded may have been lost.
    if (known.imported?.recordSha256 !== files[0]!.sha256) throw new ServiceError('JOB_EXISTS', { jobId });
    return { job: toJob(known), files: files.map(({ sizeBytes }) => ({ receivedBytes: sizeBytes })) };
  }
  if (header.statusOnly) {
    const received = await imports.received(key, files);
    return { job: undefined, files: received.map((receivedBytes) => ({ receivedBytes })) };
  }
  // Checked before the first byte: an import in progress has no row that a quota could count, and must not exceed it.
  const asked = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, await imports.bytesOfOthers(key));
  await parts.journal.change(async ({ trx }) => await parts.quotas.requireBytes(trx, caller.tenant, asked));
  using _place = parts.uploadPlaces.take();
  const upload = await imports.open(key, files);
  if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { name: `jobs/${nameOf(jobId)}` });
  try {
    const { receivedBytes, write } = upload;
    const open = { name: `jobs/${nameOf(jobId)}`, files, receivedBytes, write };
    const onReceived = (bytes: number) => metrics.receivedBytes.inc(bytes);
    await receiveChunks(messages, open, { config, signal, onReceived });
    const result = await upload.complete();
    if (result.outcome !== 'done') throw unfinished(result, open);
    const job = await storeReceived(parts, caller, { jobId, files, key, signal });
    return { job: toJob(job), files: files.map(({ sizeBytes }) => ({ receivedBytes: sizeBytes })) };
  } finally {
    await upload.close();
  }
}

/** The files that the client is going to send; all must be names that an archive can contain. */
function parseHeader(
  { archive, jobId: askedId }: ImportJobHeader,
  tenant: string,
): { files: ArchiveFile[]; jobId: string } {
  const checks = new FieldChecks();
  const id = checks.id('header.job_id', askedId) ?? (archive?.job ?? '').replace(/^jobs\//, '');
  if (askedId === '') checks.id('header.archive.job', id);
  if (id === '') checks.add('header.archive.job', 'jobs/{job}', quote(archive?.job ?? ''));
  if (archive?.formatVersion !== archiveVersion)
    checks.add(
      'header.archive.format_version',
      `${archiveVersion}, the version that this server reads`,
      archive?.formatVersion,
    );
  const files = archive?.files ?? [];
  if (files[0]?.fileName !== recordFile)
    checks.add('header.archive.files', `${recordFile} first`, quote(files[0]?.fileName ?? ''));
  checks.count('header.archive.files', files, filesMax);
  const names = new Set<string>();
  for (const [index, { fileName, sizeBytes, sha256 }] of files.slice(0, filesMax).entries()) {
    const field = `header.archive.files[${index}]`;
    if (names.has(fileName)) checks.add(`${field}.file_name`, 'each file once', quote(fileName));
    names.add(fileName);
    const isKnown =
      fileName === recordFile ||
      /^(checkpoints|artifacts|datasets)\/[a-z0-9-]{1,63}(\/[A-Za-z0-9_][A-Za-z0-9._-]{0,254}){1,3}$/.test(
        fileName,
      );
    if (!isKnown)
      checks.add(`${field}.file_name`, 'a file of a checkpoint, an artifact or a data set', quote(fileName));
    if (!/^[0-9a-f]{64}$/.test(sha256)) checks.add(`${field}.sha256`, '64 hexadecimal digits', quote(sha256));
    checks.integer(`${field}.size_bytes`, sizeBytes, 0, 0, Number.MAX_SAFE_INTEGER);
  }
  checks.throwIfWrong();
  return {
    files: files.map(({ fileName, sizeBytes, sha256 }) => ({ fileName, sizeBytes, sha256 })),
    jobId: idIn(tenant, id),
  };
}

/** Checks everything that was received and stores it. What cannot be verified is deleted. */
async function storeReceived(
  parts: JobArchiveParts,
  caller: Principal,
  { jobId, files, key, signal }: { jobId: string; files: ArchiveFile[]; key: string; signal: AbortSignal },
): Promise<Job> {
  const { imports, journal, stage, quotas, config } = parts;
  const pathOf = (index: number): string => imports.pathOf(key, index);
  try {
    const record = await readRecord(pathOf(0));
    requireFiles(record, files);
    const { job } = record;
    const newest = record.checkpoints.some(({ step }) => step === job.progress.checkpointStep);
    if (job.origin !== null && !newest && job.state === 'paused')
      throw new ArchiveInvalid(`a checkpoint of its own is there: it began at one of ${job.origin.job}`);
    // The archive does not have the texts of its data sets, which count too. Checked before the first data set is stored: it would stay
    // without its job.
    const asked =
      filesOfJob(files).reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) +
      (await bytesToAdopt(parts.datasets, { tenant: caller.tenant, record }));
    await journal.change(async ({ trx }) => await quotas.requireBytes(trx, caller.tenant, asked));
    await adoptDatasets(parts, { tenant: caller.tenant, owner: caller.name, record, files, pathOf, signal });
    const spec = await specOf(parts, caller.tenant, record);
    const datasetIds = await requireDatasets(parts, caller.tenant, spec, record);
    const imported: JobImport = {
      job: `jobs/${job.id}`,
      storeId: job.storeId,
      serverVersion: job.serverVersion,
      timeMs: Date.now(),
      recordSha256: files[0]!.sha256,
      origin: job.origin,
    };
    const received = {
      jobId,
      tenant: caller.tenant,
      owner: caller.name,
      spec,
      datasetIds,
      record,
      imported,
      files,
      pathOf,
    };
    const storeParts = { journal, stage, quotas, dataFolder: config.dataFolder };
    const stored = await imports.inTurn(`jobs/${jobId}`, async () => await storeJob(storeParts, received));
    if (stored === 'taken') throw new ServiceError('JOB_EXISTS', { jobId });
    await imports.remove(key);
    return stored;
  } catch (error) {
    if (!(error instanceof ArchiveInvalid)) throw error;
    await imports.remove(key);
    throw new ServiceError('JOB_ARCHIVE_INVALID', { problem: error.message });
  }
}

/** The specification, which must be valid on this server and have the hash that is in the checkpoints. */
async function specOf(parts: JobArchiveParts, tenant: string, { job }: JobRecord): Promise<RunSpec> {
  let stored: RunSpec;
  let asked: JobSpec;
  try {
    stored = readStoredRunSpec(JSON.stringify(job.spec));
    asked = JobSpec.fromPartial(toSpec(stored));
  } catch {
    throw new ArchiveInvalid(`the line of the job in ${recordFile} has a specification`);
  }
  const found = new Map<string, DatasetHead>();
  for (const name of readDatasetNames(stored)) {
    const head = await parts.datasets.findHead(datasetIdOf(tenant, name) ?? '');
    if (head !== undefined && head.deleteTimeMs === null) found.set(name, head);
    else throw new ServiceError('DATASET_NOT_FOUND', { datasetId: name.replace(/^datasets\//, '') });
  }
  const weights = asked.model?.baseWeights;
  const baseWeights = weights === undefined ? null : await findBaseWeights(parts, tenant, weights);
  const { spec, problems } = parseJobSpec(
    asked,
    { dataset: undefined, mixture: found, baseWeights },
    parts.config,
  );
  if (spec === null) throw new ServiceError('JOB_SPEC_INVALID', { problems });
  const kept: RunSpec = { ...spec, baseWeightsHash: stored.baseWeightsHash };
  const sha256 = job.execution?.baseWeightsSha256 ?? null;
  const hash = specHash(kept, sha256);
  if (hash !== specHash(stored, sha256))
    throw new ArchiveInvalid('the specification means here what it meant there');
  // Version 0.1 did not record it.
  if (job.execution !== null && job.execution.specSha256 !== '' && job.execution.specSha256 !== hash)
    throw new ArchiveInvalid(`the specification is the one that ran, of SHA-256 ${job.execution.specSha256}`);
  return kept;
}

/** Requires the data sets of the job with the same content. */
async function requireDatasets(
  { datasets }: Pick<ApiParts, 'datasets'>,
  tenant: string,
  spec: RunSpec,
  { job }: JobRecord,
): Promise<string[]> {
  const ids: string[] = [];
  for (const name of readDatasetNames(spec)) {
    const id = datasetIdOf(tenant, name)!;
    const expected = job.datasets.find((entry) => entry.name === name)?.manifestSha256;
    const found = (await datasets.findHead(id))?.prepared?.manifestSha256;
    if (found === undefined || (expected !== undefined && found !== expected))
      throw new ServiceError('JOB_ARCHIVE_DATA', {
        dataset: name,
        expected: expected ?? 'any',
        found: found ?? 'a data set that is not ready',
      });
    ids.push(id);
  }
  return ids;
}
