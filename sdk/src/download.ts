import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Artifact, ArtifactFile, DownloadArtifactResponse } from './contract.js';
import { retryDelayMs, sleep, type RetryOptions } from './calls.js';
import { IntegrityError, ReloraError } from './errors.js';

export interface DownloadOptions {
  signal?: AbortSignal;
  /** Called as bytes arrive, with those of earlier runs counted. */
  onProgress?: (progress: { receivedBytes: number; sizeBytes: number; fileName: string }) => void;
}

/** Opens the stream of one file from an offset. */
export type OpenDownload = (fileName: string, offsetBytes: number, signal: AbortSignal | undefined) => AsyncIterable<DownloadArtifactResponse>;

/**
 * Brings an artifact's files into a folder. Each goes into `<name>.part`, from where a broken download goes on, also in a later
 * process; once length and SHA-256 are right it is synced and renamed, so a file that is there is whole. Files that are
 * there already are not fetched again. Throws IntegrityError when the bytes are not those of the artifact.
 * @returns paths of the files
 */
export async function downloadFiles(
  artifact: Artifact, folder: string, openDownload: OpenDownload, retries: RetryOptions, options: DownloadOptions = {},
): Promise<string[]> {
  await mkdir(folder, { recursive: true });
  let doneBytes = 0;
  const paths: string[] = [];
  for (const file of artifact.files) {
    if (!isPlainName(file.fileName)) throw new IntegrityError(`The server sent ${JSON.stringify(file.fileName)} as the name of a file`, { code: 'DATA_LOSS' });
    const path = join(folder, file.fileName);
    const tell = (bytes: number) =>
      options.onProgress?.({ receivedBytes: doneBytes + bytes, sizeBytes: artifact.sizeBytes, fileName: file.fileName });
    if (!(await isComplete(path, file))) await downloadFile(file, path, openDownload, retries, tell, options.signal);
    doneBytes += file.sizeBytes;
    tell(0);
    paths.push(path);
  }
  return paths;
}

async function downloadFile(
  file: ArtifactFile, path: string, openDownload: OpenDownload, retries: RetryOptions,
  tell: (bytes: number) => void, signal: AbortSignal | undefined,
): Promise<void> {
  const partPath = `${path}.part`;
  const part = await open(partPath, 'a+');
  try {
    let { size } = await part.stat();
    if (size > file.sizeBytes) {
      await part.truncate(0);
      size = 0;
    }
    const hash = await hashOf(partPath, size);
    for (let attempt = 1; size < file.sizeBytes; ) {
      try {
        for await (const { offsetBytes, data } of openDownload(file.fileName, size, signal)) {
          if (offsetBytes !== size || size + data.length > file.sizeBytes) {
            throw new IntegrityError(`${file.fileName}: byte ${size} was expected, ${data.length} bytes from ${offsetBytes} came`, { code: 'DATA_LOSS' });
          }
          await part.writeFile(data); // at the end
          hash.update(data);
          size += data.length;
          attempt = 1;
          tell(size);
        }
        if (size < file.sizeBytes) throw new ReloraError(`${file.fileName} ended at byte ${size} of ${file.sizeBytes}`, { code: 'UNAVAILABLE' });
      } catch (error) {
        signal?.throwIfAborted();
        const delayMs = retryDelayMs(error, attempt++, retries);
        if (delayMs === null) throw error;
        await sleep(delayMs, signal);
      }
    }
    const sha256 = hash.digest('hex');
    if (sha256 !== file.sha256) {
      await rm(partPath, { force: true });
      throw new IntegrityError(`${file.fileName} should have the SHA-256 ${file.sha256}, it has ${sha256}; it was removed`, { code: 'DATA_LOSS' });
    }
    await part.sync();
  } finally {
    await part.close();
  }
  await rename(partPath, path);
}

/** A name that stays inside the folder on every system. */
function isPlainName(name: string): boolean {
  // eslint-disable-next-line no-control-regex -- control characters are what is refused
  return name !== '' && name !== '.' && name !== '..' && !/[/\\:\x00-\x1f]/.test(name) && name.length <= 255;
}

async function isComplete(path: string, file: ArtifactFile): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined || !found.isFile() || found.size !== file.sizeBytes) return false;
  return (await hashOf(path, found.size)).digest('hex') === file.sha256;
}

async function hashOf(path: string, sizeBytes: number): Promise<Hash> {
  const hash = createHash('sha256');
  if (sizeBytes > 0) for await (const chunk of createReadStream(path, { end: sizeBytes - 1 })) hash.update(chunk as Buffer);
  return hash;
}
