import { randomFillSync } from 'node:crypto';
import { closeSync, fsyncSync, openSync, rmSync, statfsSync, statSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { isDiskFull } from './storeError.js';

/**
 * A file that only occupies space. It is removed if a full disk keeps the store from being opened or closed: a database needs some space to
 * begin and to end its write-ahead log.
 */
export class Reserve {
  constructor(
    private readonly file: string,
    private readonly bytes: number,
  ) {}

  /** Creates the file if it is missing and the disk has several times its size free: the file itself must not fill the disk. */
  keep(): void {
    const size = statSync(this.file, { throwIfNoEntry: false })?.size ?? 0;
    if (size === this.bytes) return;
    this.release();
    const { bavail, bsize } = statfsSync(dirname(this.file));
    if (this.bytes === 0 || bavail * bsize < 4 * this.bytes) return;
    try {
      this.write();
    } catch (error) {
      this.release();
      if (!isDiskFull(error)) throw error;
    }
  }

  /** Removes the file; whether there was one. */
  release(): boolean {
    const isThere = statSync(this.file, { throwIfNoEntry: false }) !== undefined;
    rmSync(this.file, { force: true });
    return isThere;
  }

  private write(): void {
    // Random bytes: file systems that compress, or omit zeros, would reserve less.
    const noise = randomFillSync(Buffer.alloc(Math.min(this.bytes, 2 ** 20)));
    const file = openSync(this.file, 'w', 0o600);
    try {
      for (let written = 0; written < this.bytes;)
        written += writeSync(file, noise, 0, Math.min(noise.length, this.bytes - written));
      fsyncSync(file); // some file systems allocate the space only now
    } finally {
      closeSync(file);
    }
  }
}
