import { createHash, type Hash } from 'node:crypto';
import { mkdir, open, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { CallOptions } from './callOptions.js';
import {
  JobArchive,
  type ArchiveFile,
  type DeepPartial,
  type ExportJobResponse,
  type ImportJobRequest,
  type Job,
} from './contract.js';
import { downloadFiles } from './download.js';
import { IntegrityError, ReloraError } from './errors.js';
import type { Patience } from './patience.js';
import { messagesOf, resumeUpload } from './resumeUpload.js';

/** Lists the files of an exported job. Written last: a folder without it is incomplete. */
export const archiveFile = 'archive.json';

export interface ExportJobOptions extends CallOptions {
  /** Whether to include the prepared data sets, for a server that does not have them. */
  withDatasets?: boolean;
  /** Called as bytes arrive; includes those of earlier runs. */
  onProgress?: (progress: { receivedBytes: number; sizeBytes: number; fileName: string }) => void;
}

/** A file of an exported job; its content must be read before the next file is requested. */
export interface ExportedJobFile {
  /** `archive.json`, then the names in the archive. */
  fileName: string;
  sizeBytes: number;
  /** Throws IntegrityError at its end if the content does not match the archive. */
  content: AsyncIterable<Uint8Array>;
}

/** An exported job that is not in a folder. */
export interface JobFiles {
  /** Content of its `archive.json`. */
  archive: string;
  /** Bytes of a file from an offset. */
  read(fileName: string, offsetBytes: number): AsyncIterable<Uint8Array>;
}

export interface ImportJobOptions extends CallOptions {
  /** Id for the job; default: the one that it had. */
  jobId?: string;
  /** 0 to 1. */
  onProgress?: (ratio: number) => void;
}

export interface ExportJobCalls {
  /** Without a file name: the archive, then its record. */
  open(fileName: string, offsetBytes: number): AsyncIterable<ExportJobResponse>;
}

/** Downloads all files of a job to a folder and verifies them; continues an interrupted download. */
export async function exportJobTo(
  folder: string,
  calls: ExportJobCalls,
  patience: Patience,
  onProgress: ExportJobOptions['onProgress'],
): Promise<JobArchive> {
  await mkdir(folder, { recursive: true });
  let archive = await describedIn(folder, calls, patience);
  for (;;) {
    const [record, ...files] = archive.files;
    const { sizeBytes } = archive;
    let asked = '';
    try {
      await downloadFiles(
        { files, sizeBytes },
        folder,
        (fileName, offset) => chunksOf(calls.open((asked = fileName), offset)),
        patience,
        ({ receivedBytes, fileName }) =>
          onProgress?.({ receivedBytes: record!.sizeBytes + receivedBytes, sizeBytes, fileName }),
      );
      break;
    } catch (error) {
      if (!isRefused(error)) throw error;
      // An artifact may be deleted, or a checkpoint pruned, meanwhile: the job is then exported as it is without it.
      archive = await describedIn(folder, calls, patience);
      if (archive.files.some(({ fileName }) => fileName === asked)) throw error;
    }
  }
  const path = join(folder, archiveFile);
  await writeFile(`${path}.part`, textOf(archive));
  // Last, and together: an interrupted export leaves the record and the archive of an earlier one, which fit.
  const record = join(folder, archive.files[0]!.fileName);
  await rename(`${record}.part`, record);
  await rename(`${path}.part`, path);
  return archive;
}

/**
 * The same files one after another. If the connection breaks within a file, it continues there, except in the record, which is a snapshot.
 */
export async function* exportedFiles(
  calls: ExportJobCalls,
  patience: Patience,
): AsyncGenerator<ExportedJobFile> {
  const { archive, responses } = await described(calls, patience);
  const text = Buffer.from(textOf(archive));
  const [record, ...files] = archive.files;
  try {
    yield { fileName: archiveFile, sizeBytes: text.length, content: only(text) };
    yield { ...record!, content: checked(record!, bytesOf(responses)) };
  } finally {
    await responses.return?.(); // the stream is still open if the record was not read to its end
  }
  for (const file of files)
    yield { ...file, content: checked(file, unchanged(file, resumed(file, calls, patience))) };
}

/**
 * Files that were already passed on cannot be taken back, so a file that was deleted meanwhile ends the export with an error that says so.
 */
async function* unchanged(
  { fileName }: ArchiveFile,
  content: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  try {
    yield* content;
  } catch (error) {
    if (!isRefused(error)) throw error;
    const message = `${fileName} was deleted while the job was exported: export it again`;
    throw new ReloraError(message, { code: 'ABORTED' }, { cause: error });
  }
}

/** Whether the server does not know such a file of the job. */
function isRefused(error: unknown): boolean {
  return error instanceof ReloraError && (error.code === 'NOT_FOUND' || error.code === 'INVALID_ARGUMENT');
}

/** The current archive, with its record in the folder, as a part. */
async function describedIn(folder: string, calls: ExportJobCalls, patience: Patience): Promise<JobArchive> {
  for (;;) {
    try {
      const { archive, responses } = await described(calls, patience);
      const record = archive.files[0]!;
      const part = await open(join(folder, `${record.fileName}.part`), 'w');
      try {
        for await (const bytes of checked(record, bytesOf(responses))) await part.writeFile(bytes);
        await part.sync();
      } finally {
        await responses.return?.();
        await part.close();
      }
      return archive;
    } catch (error) {
      await patience.pause(error);
    }
  }
}

/** The current archive, and the rest of the answer: the bytes of the record. */
async function described(calls: ExportJobCalls, patience: Patience) {
  for (;;) {
    try {
      const responses = calls.open('', 0)[Symbol.asyncIterator]();
      return { archive: await archiveOf(responses), responses };
    } catch (error) {
      await patience.pause(error);
    }
  }
}

async function archiveOf(responses: AsyncIterator<ExportJobResponse>): Promise<JobArchive> {
  const first = await responses.next();
  const archive = first.done === true ? undefined : first.value.archive;
  if (archive === undefined) throw new ReloraError('The server sent no archive', { code: 'UNAVAILABLE' });
  if (archive.files[0]?.fileName !== 'job.jsonl')
    throw new IntegrityError('The server sent an archive without job.jsonl', { code: 'DATA_LOSS' });
  return archive;
}

const textOf = (archive: JobArchive): string => `${JSON.stringify(JobArchive.toJSON(archive), null, 2)}\n`;

async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  await Promise.resolve();
  yield bytes;
}

async function* bytesOf(responses: AsyncIterator<ExportJobResponse>): AsyncGenerator<Uint8Array> {
  for (;;) {
    const next = await responses.next();
    if (next.done === true) return;
    yield next.value.data;
  }
}

/** Passes on the bytes of the file, and throws unless they were complete and correct. */
async function* checked(
  { fileName, sizeBytes, sha256 }: ArchiveFile,
  content: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const hash: Hash = createHash('sha256');
  let size = 0;
  for await (const bytes of content) {
    hash.update(bytes);
    size += bytes.length;
    if (size <= sizeBytes) yield bytes;
  }
  if (size < sizeBytes)
    throw new ReloraError(`${fileName} ended at byte ${size} of ${sizeBytes}`, { code: 'UNAVAILABLE' });
  if (size > sizeBytes || hash.digest('hex') !== sha256)
    throw new IntegrityError(`${fileName}: the SHA-256 of what came is not ${sha256}`, { code: 'DATA_LOSS' });
}

async function* resumed(
  { fileName, sizeBytes }: ArchiveFile,
  calls: ExportJobCalls,
  patience: Patience,
): AsyncGenerator<Uint8Array> {
  for (let size = 0; size < sizeBytes;) {
    try {
      for await (const { data } of calls.open(fileName, size)) {
        size += data.length;
        if (data.length > 0) patience.progress();
        yield data;
      }
      if (size < sizeBytes)
        throw new ReloraError(`${fileName} ended at byte ${size} of ${sizeBytes}`, { code: 'UNAVAILABLE' });
    } catch (error) {
      await patience.pause(error);
    }
  }
}

async function* chunksOf(responses: AsyncIterable<ExportJobResponse>) {
  for await (const { offsetBytes, data } of responses) yield { offsetBytes, data };
}

interface Received {
  job: Job | undefined;
  files: readonly { receivedBytes: number }[];
}

/**
 * Sends the missing bytes of a folder that `exportJobTo` filled, or of the same files elsewhere; resolves with the job once it is stored.
 */
export async function importJobFrom(
  from: string | JobFiles,
  upload: (messages: AsyncIterable<DeepPartial<ImportJobRequest>>) => Promise<Received>,
  patience: Patience,
  { jobId = '', onProgress }: Pick<ImportJobOptions, 'jobId' | 'onProgress'>,
): Promise<Job> {
  const archive = await readArchive(from);
  const header = { archive, jobId, statusOnly: false };
  const known = async (): Promise<Received> => {
    for (;;) {
      try {
        return await upload(messagesOf({ ...header, statusOnly: true }, noChunks()));
      } catch (error) {
        await patience.pause(error);
      }
    }
  };
  const { job } = await resumeUpload<Received>(
    {
      sources: archive.files.map(({ fileName }) =>
        typeof from === 'string'
          ? { path: join(from, fileName) }
          : { read: (offset: number) => from.read(fileName, offset) },
      ),
      upload: async (chunks) => await upload(messagesOf(header, chunks)),
      known,
      onSent: (bytes) => onProgress?.(archive.sizeBytes === 0 ? 1 : bytes / archive.sizeBytes),
    },
    patience,
  );
  if (job === undefined)
    throw new ReloraError('The server took the files and stored no job', { code: 'INTERNAL' });
  return job;
}

async function* noChunks(): AsyncGenerator<never> {}

async function readArchive(from: string | JobFiles): Promise<JobArchive> {
  const path = typeof from === 'string' ? join(from, archiveFile) : archiveFile;
  let text: string;
  try {
    text = typeof from === 'string' ? await readFile(path, 'utf8') : from.archive;
  } catch (error) {
    const why =
      (error as NodeJS.ErrnoException).code === 'ENOENT'
        ? 'the export of the job is not whole'
        : (error as Error).message;
    throw new ReloraError(`${path} cannot be read: ${why}`, {
      code: 'INVALID_ARGUMENT',
      reason: 'FILE_UNREADABLE',
    });
  }
  try {
    return JobArchive.fromJSON(JSON.parse(text));
  } catch {
    throw new IntegrityError(`${path} is no archive of a job`, { code: 'DATA_LOSS' });
  }
}
