import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { constants, mkdir, open, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Artifact, ArtifactFile, DownloadArtifactResponse, ExportedWeights } from './contract.js';
import type { CallOptions } from './callOptions.js';
import { IntegrityError, ReloraError } from './errors.js';
import { FileDigest } from './fileDigest.js';
import type { Patience } from './patience.js';

export interface DownloadOptions extends CallOptions {
  /** BEST, of a job: an artifact with the weights of its lowest held-out loss, which exportWeights makes. */
  weights?: ExportedWeights;
  /** Called as bytes arrive, with those of earlier runs counted. */
  onProgress?: (progress: { receivedBytes: number; sizeBytes: number; fileName: string }) => void;
}

/** Opens the stream of one file from an offset. */
export type OpenDownload = (fileName: string, offsetBytes: number) => AsyncIterable<DownloadArtifactResponse>;

/**
 * Brings an artifact's files into a folder. Each goes into `<name>.<hash>.part`, from where a broken download resumes, also
 * in a later process; once size and SHA-256 of that file are right it is synced and renamed, so a file that is there is
 * whole. Files that are there already are not fetched again. Two downloads at once may share a part: both write the
 * same bytes to the same places, and what counts is the file. Throws IntegrityError when it is not that of the artifact.
 * @returns paths of the files
 */
export async function downloadFiles(
  artifact: Artifact,
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
    if (!(await isComplete(path, file))) {
      const partPath = `${path}.${file.sha256.slice(0, 12)}.part`;
      const sha256 = await receive(file, partPath, openDownload, patience, report);
      await finish(file, partPath, path, sha256);
    }
    doneBytes += sizeBytes;
    report(0);
    paths.push(path);
  }
  for (const parent of new Set(paths.map((path) => dirname(path)))) await syncFolder(parent);
  return paths;
}

/** Fills the part from where it ends; resolves with the SHA-256 of what is in it then, undefined where it is gone. */
async function receive(
  file: ArtifactFile,
  partPath: string,
  openDownload: OpenDownload,
  patience: Patience,
  report: (bytes: number) => void,
): Promise<string | undefined> {
  // Not for appending: that would ignore positions.
  const part = await open(partPath, constants.O_RDWR | constants.O_CREAT, 0o666);
  const digest = file.sizeBytes >= besideBytesMin ? new FileDigest(partPath) : undefined;
  try {
    let { size } = await part.stat();
    if (size > file.sizeBytes) await part.truncate((size = 0));
    while (size < file.sizeBytes) {
      try {
        for await (const { offsetBytes, data } of openDownload(file.fileName, size)) {
          if (offsetBytes !== size || size + data.length > file.sizeBytes) {
            throw wrongBytes(
              file,
              `byte ${size} was expected, ${data.length} bytes from ${offsetBytes} came`,
            );
          }
          await writeAll(part, data, size);
          size += data.length;
          digest?.reached(size);
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
    // Neither waits for the other.
    const [sha256] = await Promise.all([digest?.finish(size) ?? sha256Of(partPath), part.sync()]);
    return sha256;
  } finally {
    await digest?.close();
    await part.close();
  }
}

/** Of smaller files the hash is had sooner than a thread for it. */
const besideBytesMin = 4 << 20;

/** Gives a part its name if it is the file. */
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
  // Another download of the same file may have come first.
  if (await isComplete(path, file)) return;
  await rm(partPath, { force: true });
  throw wrongBytes(file, `the SHA-256 of what came is not ${file.sha256}; it was removed`);
}

async function writeAll(part: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < data.length;) {
    done += (await part.write(data, done, data.length - done, position + done)).bytesWritten;
  }
}

/** Names must stay inside the folder on every system; the hash becomes part of one. */
function checkDescription({ fileName, sha256 }: ArtifactFile): void {
  const isPlain =
    fileName.length <= 200 &&
    (fileName.split('/').length <= 2 || /^base\/additional_chat_templates\/[^/]+$/.test(fileName)) &&
    fileName.split('/').every((part) => !/^\.{0,2}$|[\\:\x00-\x1f]/.test(part));
  if (isPlain && /^[0-9a-f]{64}$/.test(sha256)) return;
  const message = `The server sent ${JSON.stringify(fileName)} with the hash ${JSON.stringify(sha256)} as a file`;
  throw new IntegrityError(message, { code: 'DATA_LOSS' });
}

async function isComplete(path: string, file: ArtifactFile): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined || !found.isFile() || found.size !== file.sizeBytes) return false;
  return (await sha256Of(path)) === file.sha256;
}

/** Undefined where another download has renamed it. */
async function sha256Of(path: string): Promise<string | undefined> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  return hash.digest('hex');
}

/** Makes the new names last. Windows has no such thing. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  await handle.sync().finally(() => handle.close());
}

function wrongBytes({ fileName }: ArtifactFile, message: string): IntegrityError {
  return new IntegrityError(`${fileName}: ${message}`, { code: 'DATA_LOSS' });
}
