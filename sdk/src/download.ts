import { constants, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Artifact, ArtifactFile, DownloadArtifactResponse, ExportedWeights } from './contract.js';
import type { CallOptions } from './callOptions.js';
import { IntegrityError, ReloraError } from './errors.js';
import { FileDigest, sha256Of } from './fileDigest.js';
import { PartWriter } from './partWriter.js';
import type { Patience } from './patience.js';

export interface DownloadOptions extends CallOptions {
  /** BEST: an artifact of the job with the weights of its lowest held-out loss, as made by exportWeights. */
  weights?: ExportedWeights;
  /** Called as bytes arrive; includes those of earlier runs. */
  onProgress?: (progress: { receivedBytes: number; sizeBytes: number; fileName: string }) => void;
}

/** Attempts to fetch a file that arrives damaged. */
const damagedTriesMax = 5;

/** Opens the stream of one file from an offset. */
export type OpenDownload = (
  fileName: string,
  offsetBytes: number,
) => AsyncIterable<Pick<DownloadArtifactResponse, 'offsetBytes' | 'data'>>;

/**
 * Downloads an artifact's files to a folder. Each is written to `<name>.<hash>.part`, from which an interrupted download resumes, even in a
 * later process. Once its size and SHA-256 are right it is synced and renamed, so a file with its final name is complete. Existing files
 * are not fetched again. Two downloads at the same time may share a part: both write the same bytes to the same places, and only the
 * resulting file matters. Throws IntegrityError if that is not the file of the artifact.
 * @returns paths of the files
 */
export async function downloadFiles(
  artifact: Pick<Artifact, 'files' | 'sizeBytes'>,
  folder: string,
  openDownload: OpenDownload,
  patience: Patience,
  onProgress: DownloadOptions['onProgress'],
): Promise<string[]> {
  for (const file of artifact.files) checkDescription(file);
  for (const { fileName } of artifact.files)
    await mkdir(dirname(join(folder, fileName)), { recursive: true });
  let doneBytes = 0;
  const paths: string[] = [];
  for (const file of artifact.files) {
    const { fileName, sizeBytes } = file;
    const path = join(folder, fileName);
    const report = (bytes: number) =>
      onProgress?.({ receivedBytes: doneBytes + bytes, sizeBytes: artifact.sizeBytes, fileName });
    if (!(await isComplete(path, file))) await bring(file, path, openDownload, patience, report);
    doneBytes += sizeBytes;
    report(0);
    paths.push(path);
  }
  for (const parent of new Set(paths.map((path) => dirname(path)))) await syncFolder(parent);
  return paths;
}

/** A file that arrives damaged is fetched again from its beginning: bits may have flipped in transit, or where the server reads it. */
async function bring(
  file: ArtifactFile,
  path: string,
  openDownload: OpenDownload,
  patience: Patience,
  report: (bytes: number) => void,
): Promise<void> {
  const partPath = `${path}.${file.sha256.slice(0, 12)}.part`;
  for (let tries = 1; ; tries++) {
    try {
      const sha256 = await receive(file, partPath, openDownload, patience, report);
      return await finish(file, partPath, path, sha256);
    } catch (error) {
      if (!(error instanceof ReloraError) || error.code !== 'DATA_LOSS') throw error;
      await rm(partPath, { force: true }); // its content cannot be trusted
      if (tries === damagedTriesMax) throw error;
    }
  }
}

/** Fills the part from where it ends; resolves with the SHA-256 of its content, undefined if the file is gone. */
async function receive(
  file: ArtifactFile,
  partPath: string,
  openDownload: OpenDownload,
  patience: Patience,
  report: (bytes: number) => void,
): Promise<string | undefined> {
  // Not opened for appending, which would ignore positions.
  const part = await open(partPath, constants.O_RDWR | constants.O_CREAT, 0o666);
  const digest = file.sizeBytes >= besideBytesMin ? new FileDigest(partPath) : undefined;
  let writer: PartWriter | undefined;
  try {
    let { size } = await part.stat();
    if (size > file.sizeBytes) await part.truncate((size = 0));
    writer = new PartWriter(part, size, (bytes) => digest?.reached(bytes));
    while (size < file.sizeBytes) {
      try {
        for await (const { offsetBytes, data } of openDownload(file.fileName, size)) {
          if (offsetBytes !== size || size + data.length > file.sizeBytes) {
            throw wrongBytes(
              file,
              `byte ${size} was expected, ${data.length} bytes from ${offsetBytes} came`,
            );
          }
          await writer.add(data);
          size += data.length;
          if (data.length > 0) patience.progress();
          report(size);
        }
        if (size < file.sizeBytes) {
          const message = `${file.fileName} ended at byte ${size} of ${file.sizeBytes}`;
          throw new ReloraError(message, { code: 'UNAVAILABLE' });
        }
      } catch (error) {
        await patience.pause(error);
      }
    }
    await writer.flush();
    // Hashing and syncing run in parallel.
    const [sha256] = await Promise.all([digest?.finish(size) ?? hashIfThere(partPath), part.sync()]);
    return sha256;
  } finally {
    await writer?.idle();
    await digest?.close();
    await part.close();
  }
}

/** Smaller files are hashed faster than a thread starts. */
const besideBytesMin = 4 << 20;

/** Renames a part to its final name if its content is right. */
async function finish(
  file: ArtifactFile,
  partPath: string,
  path: string,
  sha256: string | undefined,
): Promise<void> {
  if (sha256 === file.sha256) {
    try {
      await rename(partPath, path);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  // Another download of the same file may have finished first.
  if (await isComplete(path, file)) return;
  throw wrongBytes(file, `the SHA-256 of what came is not ${file.sha256}; it was removed`);
}

/** Names must stay inside the folder on every system; the hash becomes part of a name. */
function checkDescription({ fileName, sha256 }: ArtifactFile): void {
  const isPlain =
    fileName.length <= 200 &&
    fileName.split('/').length <= 5 &&
    fileName.split('/').every((part) => !/^\.{0,2}$|[\\:\x00-\x1f]/.test(part) && !isReserved(part));
  if (isPlain && /^[0-9a-f]{64}$/.test(sha256)) return;
  const message = `The server sent ${JSON.stringify(fileName)} with the hash ${JSON.stringify(sha256)} as a file`;
  throw new IntegrityError(message, { code: 'DATA_LOSS' });
}

/** Names that Windows takes for devices, or whose ends it removes. */
function isReserved(name: string): boolean {
  return process.platform === 'win32' && /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)|[. ]$|[<>"|?*]/i.test(name);
}

async function isComplete(path: string, file: ArtifactFile): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined || !found.isFile() || found.size !== file.sizeBytes) return false;
  return (await hashIfThere(path)) === file.sha256;
}

/** Undefined if another download has renamed the part. */
async function hashIfThere(path: string): Promise<string | undefined> {
  try {
    return await sha256Of(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Makes the new names durable, which Windows does not support. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  await handle.sync().finally(() => handle.close());
}

function wrongBytes({ fileName }: ArtifactFile, message: string): IntegrityError {
  return new IntegrityError(`${fileName}: ${message}`, { code: 'DATA_LOSS' });
}
