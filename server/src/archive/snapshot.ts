import { createHash, randomUUID } from 'node:crypto';
import { open, unlink, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { ServiceError } from '../errors.js';
import type { Job } from '../jobs/job.js';
import {
  artifactLines,
  checkpointLines,
  datasetLines,
  filesIn,
  jobLine,
  type ArchiveFile,
  type ArchiveParts,
} from './describeJob.js';
import { exportedStates, recordFile, writeLine, type RecordLine } from './jobRecord.js';

const eventsPerRead = 1000;
const pieceBytes = 256 * 1024;

/** An archive of the job at one moment: later changes of the job affect neither its record nor the list of its files. */
export interface Snapshot {
  /** All files, the record first. */
  files: ArchiveFile[];
  record(): AsyncGenerator<Buffer>;
  close(): Promise<void>;
}

/**
 * Writes the record of a job into a file of its own, which is as long as the journal, and lists the files that it names. Its lines come
 * from several tables: if the job changed while they were read, they are read again.
 * @param withDatasets whether to include the data sets that it reads
 */
export async function takeSnapshot(
  parts: ArchiveParts & { dataFolder: string },
  found: Job,
  { withDatasets }: { withDatasets: boolean },
): Promise<Snapshot> {
  for (let job = found; ;) {
    requireExported(job); // it may have been resumed while it was read
    const path = join(parts.dataFolder, `.record-${randomUUID()}`);
    const spool = await open(path, 'wx+', 0o600);
    try {
      await unlink(path); // so a crash leaves nothing
      const { files, sizeBytes, sha256 } = await writeRecord(parts, job, withDatasets, spool);
      const now = await parts.store.find(job.id);
      if (now === undefined || now.version === job.version) {
        const record = { fileName: recordFile, sizeBytes, sha256 };
        return { files: [record, ...files], record: () => piecesOf(spool), close: () => spool.close() };
      }
      await spool.close();
      job = now;
    } catch (error) {
      await spool.close();
      throw error;
    }
  }
}

/** Throws for a job that is in progress: an import would refuse it. */
export function requireExported({ id, state }: Job): void {
  if (exportedStates.some((exported) => exported === state)) return;
  throw new ServiceError('JOB_STATE_WRONG', {
    jobId: id,
    state: state.toUpperCase(),
    action: 'exported',
    allowed: 'PAUSED, SUCCEEDED, FAILED or CANCELLED',
  });
}

async function writeRecord(
  parts: ArchiveParts,
  job: Job,
  withDatasets: boolean,
  spool: FileHandle,
): Promise<{ files: ArchiveFile[]; sizeBytes: number; sha256: string }> {
  const hash = createHash('sha256');
  let [lineCount, sizeBytes] = [0, 0];
  const write = async (lines: readonly RecordLine[]): Promise<void> => {
    if (lines.length === 0) return;
    const bytes = Buffer.from(lines.map(writeLine).join(''));
    hash.update(bytes);
    await spool.write(bytes, 0, bytes.length, sizeBytes);
    sizeBytes += bytes.length;
    lineCount += lines.length;
  };
  await write([await jobLine(parts, job)]);
  await write((await parts.store.updatesOf(job.id)).map((update) => ({ kind: 'update', ...update })));
  const checkpoints = await checkpointLines(parts, job);
  const artifacts = await artifactLines(parts, job);
  const datasets = withDatasets ? await datasetLines(parts, job) : [];
  await write([...checkpoints, ...artifacts, ...datasets]);
  const evaluations = (await parts.store.evaluationsOf(job.id)).reverse();
  await write(evaluations.map((evaluation) => ({ kind: 'evaluation', ...evaluation })));
  for (let sequence = 0; sequence < job.lastSequence;) {
    const { events } = await parts.journal.readAfter(job.id, sequence, eventsPerRead);
    if (events.length === 0) break;
    await write(events.map((event) => ({ kind: 'event', ...event })));
    sequence = events.at(-1)!.sequence;
  }
  await write([{ kind: 'end', lineCount }]);
  return {
    files: filesIn([...checkpoints, ...artifacts, ...datasets]),
    sizeBytes,
    sha256: hash.digest('hex'),
  };
}

async function* piecesOf(spool: FileHandle): AsyncGenerator<Buffer> {
  for (let position = 0; ;) {
    const piece = Buffer.allocUnsafeSlow(pieceBytes);
    const { bytesRead } = await spool.read(piece, 0, pieceBytes, position);
    if (bytesRead === 0) return;
    position += bytesRead;
    yield piece.subarray(0, bytesRead);
  }
}
