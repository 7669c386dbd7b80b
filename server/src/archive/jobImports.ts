import { createHash } from 'node:crypto';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { bytesOf, namesIn } from '../store/diskFiles.js';
import { folders } from '../store/folders.js';
import { tenantOf } from '../store/tenantIds.js';
import { OpenUploads, type Upload } from '../uploads/openUploads.js';
import type { ArchiveFile } from './describeJob.js';

/** How long received parts of an import are kept if nobody continues it. */
const abandonedMs = 3 * 86_400_000;

/** Imports in progress: what was received of each is in a folder that is named after its files, so that it can continue. */
export class JobImports {
  private readonly uploads: OpenUploads;
  /** The end of the last work that has a turn, by job or data set. */
  private readonly turns = new Map<string, Promise<unknown>>();

  constructor(
    private readonly dataFolder: string,
    options: { freeDiskBytesMin: number },
  ) {
    this.uploads = new OpenUploads({ ...options, parts: null, ownerOf: (id) => id, touch: async () => {} });
  }

  /** Depends on the job and its files: sending other files begins another import. It begins with the tenant and a dot. */
  keyOf(jobId: string, files: readonly ArchiveFile[]): string {
    const hash = createHash('sha256')
      .update(
        JSON.stringify([
          jobId,
          files.map(({ fileName, sizeBytes, sha256 }) => [fileName, sizeBytes, sha256]),
        ]),
      )
      .digest('hex')
      .slice(0, 32);
    return `${tenantOf(jobId)}.${hash}`;
  }

  /** Bytes received by the other imports of a tenant, which have no rows. */
  async bytesOfOthers(key: string): Promise<number> {
    const parent = folders.imports(this.dataFolder);
    const prefix = key.slice(0, key.indexOf('.') + 1);
    let bytes = 0;
    for (const other of await namesIn(parent))
      if (other !== key && other.startsWith(prefix)) bytes += await bytesOf(join(parent, other));
    return bytes;
  }

  pathOf(key: string, index: number): string {
    return join(this.folderOf(key), String(index));
  }

  /** Number of received bytes of each file. */
  async received(key: string, files: readonly ArchiveFile[]): Promise<number[]> {
    return await Promise.all(
      files.map(async ({ sizeBytes }, index) => {
        const found = await stat(this.pathOf(key, index)).catch(() => undefined);
        return Math.min(found?.size ?? 0, sizeBytes);
      }),
    );
  }

  async open(key: string, files: readonly ArchiveFile[]): Promise<Upload | 'busy'> {
    await this.removeAbandoned();
    return await this.uploads.open<never>(key, async () => {
      const received = await this.received(key, files);
      const expected = files.map((file, index) => ({
        ...file,
        path: this.pathOf(key, index),
        receivedBytes: received[index]!,
        isOnServer: false,
      }));
      return { files: expected, folder: this.folderOf(key) };
    });
  }

  /**
   * Stores a job or a data set, such as `jobs/…`, after other imports that store it: two at once would put their files into the same
   * folder.
   */
  async inTurn<T>(name: string, store: () => Promise<T>): Promise<T> {
    const stored = (this.turns.get(name) ?? Promise.resolve()).then(store);
    const turn = stored
      .catch(() => {})
      .then(() => {
        if (this.turns.get(name) === turn) this.turns.delete(name);
      });
    this.turns.set(name, turn);
    return await stored;
  }

  /** Removes the rest of an import that is over. */
  async remove(key: string): Promise<void> {
    await rm(this.folderOf(key), { recursive: true, force: true });
  }

  private folderOf(key: string): string {
    return join(folders.imports(this.dataFolder), key);
  }

  private async removeAbandoned(): Promise<void> {
    const parent = folders.imports(this.dataFolder);
    for (const key of await readdir(parent).catch(() => [])) {
      const changedMs = (await stat(join(parent, key)).catch(() => undefined))?.mtimeMs ?? Infinity;
      if (!this.uploads.has(key) && changedMs < Date.now() - abandonedMs) await this.remove(key);
    }
  }
}
