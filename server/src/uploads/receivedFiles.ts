import { createHash, type Hash } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { open, rm, statfs, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { syncFolder } from '../store/folders.js';

/**
 * `noFile`: no uploaded file has this index. `wrongOffset`: bytes must continue at receivedBytes. `tooLong`: more than the declared size.
 * `noSpace`: the minimum of free space is reached, or the disk is full. `busy`: another server is receiving it, too.
 */
export type WriteResult = 'written' | 'noFile' | 'wrongOffset' | 'tooLong' | 'noSpace' | 'busy';

/** `incomplete`: bytes are missing and the upload can be resumed. `wrongHash`: the named file was deleted and must be sent again. */
export type ReceiveResult =
  | { outcome: 'done' }
  | { outcome: 'incomplete' }
  | { outcome: 'wrongHash'; fileName: string; expected: string; actual: string };

/** A file to receive. */
export interface ExpectedFile {
  fileName: string;
  path: string;
  sizeBytes: number;
  receivedBytes: number;
  /** Null: not checked. */
  sha256: string | null;
  /** It is already on the server: nothing is received. */
  isOnServer: boolean;
}

/** Folders that received files are written to. */
export function foldersOf(files: readonly ExpectedFile[]): string[] {
  return files.filter(({ isOnServer }) => !isOnServer).map(({ path }) => dirname(path));
}

/** Free space is checked once per this many bytes: checking it for every chunk would be too expensive. */
const spaceCheckBytes = 64 * 2 ** 20;

/** Stores received bytes where other servers find them. */
export interface KeptParts {
  partBytes: number;
  bring(fileIndex: number, path: string): Promise<Hash>;
  add(fileIndex: number, path: string, start: number, end: number): Promise<boolean>;
  drop(fileIndex: number): Promise<void>;
}

interface Target {
  file: ExpectedFile;
  handle: FileHandle | undefined;
  /** Hash of all bytes so far; null if some came in an earlier upload, so that the file must be read again. */
  hash: Hash | null;
  /** Bytes that other servers can find. */
  keptBytes: number;
}

/** Receives the files of one client's upload into a folder of their own. Must be closed, also after an error. */
export class ReceivedFiles {
  /** Bytes received so far by file, kept up to date by write. */
  readonly receivedBytes: number[];
  private readonly targets: Target[];
  private openTarget: Target | undefined;
  private bytesUntilCheck = 0;
  private isComplete = false;

  constructor(
    files: readonly ExpectedFile[],
    private readonly folder: string,
    private readonly freeDiskBytesMin: number,
    /** Null if no other server can continue it. */
    private readonly parts: KeptParts | null = null,
  ) {
    this.receivedBytes = files.map(({ receivedBytes }) => receivedBytes);
    this.targets = files.map((file) => ({
      file,
      handle: undefined,
      hash: file.receivedBytes === 0 ? createHash('sha256') : null,
      keptBytes: file.receivedBytes,
    }));
  }

  /** Copies what other servers received to this machine; call it before writing. */
  async bring(): Promise<void> {
    if (this.parts === null) return;
    for (const [index, target] of this.targets.entries())
      if (target.file.receivedBytes > 0) target.hash = await this.parts.bring(index, target.file.path);
  }

  /** Appends bytes; they are in the file, but survive a power cut only after `complete`. */
  async write(fileIndex: number, offset: number, data: Uint8Array): Promise<WriteResult> {
    const target = this.targets[fileIndex];
    const received = this.receivedBytes[fileIndex];
    if (target === undefined || received === undefined || target.file.isOnServer) return 'noFile';
    if (offset !== received) return 'wrongOffset';
    if (received + data.length > target.file.sizeBytes) return 'tooLong';
    if (!(await this.hasSpaceFor(data.length))) return 'noSpace';

    // Only one file is open at a time: an upload of a thousand files must not use up the descriptors of the store.
    if (this.openTarget !== target) await this.closeOpen();
    this.openTarget = target;
    // Follows no link that somebody else created, so it never opens another file than the one we made.
    target.handle ??= await open(
      target.file.path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW,
      0o600,
    );
    try {
      for (let written = 0; written < data.length;) {
        written += (await target.handle.write(data, written, data.length - written, received + written))
          .bytesWritten;
      }
    } catch (error) {
      if (!['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
      await target.handle.truncate(received);
      return 'noSpace';
    }
    target.hash?.update(data);
    this.receivedBytes[fileIndex] = received + data.length;
    const unkept = received + data.length - target.keptBytes;
    if (this.parts !== null && unkept >= this.parts.partBytes)
      return (await this.keep(target, fileIndex)) ? 'written' : 'busy';
    return 'written';
  }

  /** False if another server received more: the client must ask for the offset again. */
  private async keep(target: Target, fileIndex: number): Promise<boolean> {
    const end = this.receivedBytes[fileIndex]!;
    if (this.parts === null || end === target.keptBytes) return true;
    if (!(await this.parts.add(fileIndex, target.file.path, target.keptBytes, end))) return false;
    target.keptBytes = end;
    return true;
  }

  /** Syncs and verifies every file; everything is durable when it resolves with `done`. */
  async complete(): Promise<ReceiveResult> {
    if (this.targets.some(({ file }, index) => this.receivedBytes[index] !== file.sizeBytes))
      return { outcome: 'incomplete' };
    for (const [index, target] of this.targets.entries()) {
      const { file } = target;
      const { path } = file;
      if (file.isOnServer) continue;
      const handle =
        target.handle ??
        (await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW, 0o600));
      target.handle = undefined;
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
      const actual = target.hash === null ? await sha256Of(path) : target.hash.digest('hex');
      target.hash = null;
      if (file.sha256 !== null && actual !== file.sha256) {
        await rm(path);
        await this.parts?.drop(index);
        this.receivedBytes[index] = 0;
        target.keptBytes = 0;
        target.hash = createHash('sha256');
        return { outcome: 'wrongHash', fileName: file.fileName, expected: file.sha256, actual };
      }
    }
    for (const folder of new Set([...foldersOf(this.targets.map(({ file }) => file)), this.folder]))
      await syncFolder(folder);
    await syncFolder(dirname(this.folder));
    await syncFolder(dirname(dirname(this.folder)));
    this.isComplete = true;
    return { outcome: 'done' };
  }

  /** Also stores what arrived since the last part; if that fails, the client sends it again. */
  async close(): Promise<void> {
    await this.closeOpen();
    if (this.isComplete || this.parts === null) return;
    for (const [index, target] of this.targets.entries())
      if (!target.file.isOnServer) await this.keep(target, index).catch(() => false);
  }

  /** `complete` syncs what was written, whichever descriptor it was written through. */
  private async closeOpen(): Promise<void> {
    const handle = this.openTarget?.handle;
    if (this.openTarget !== undefined) this.openTarget.handle = undefined;
    this.openTarget = undefined;
    await handle?.close();
  }

  private async hasSpaceFor(byteCount: number): Promise<boolean> {
    this.bytesUntilCheck -= byteCount;
    if (this.bytesUntilCheck > 0) return true;
    const { bavail, bsize } = await statfs(this.folder);
    if (bavail * bsize - byteCount < this.freeDiskBytesMin) {
      this.bytesUntilCheck = 0;
      return false;
    }
    this.bytesUntilCheck = spaceCheckBytes;
    return true;
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: 2 ** 20 })) hash.update(piece as Buffer);
  return hash.digest('hex');
}
