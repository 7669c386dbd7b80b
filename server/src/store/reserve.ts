import { randomFillSync } from 'node:crypto';
import { closeSync, fsyncSync, openSync, rmSync, statfsSync, statSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { isDiskFull } from './storeError.js';

/**
 * A file that does nothing but take room, which is given up where a full disk would keep the store from being opened or closed:
 * a database needs some to begin and to end its write-ahead log.
 */
export class Reserve {
  constructor(
    private readonly file: string,
    private readonly bytes: number,
  ) {}

  /** Makes it where it is missing and there is room for it several times over: it must not fill the disk itself. */
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

  /** Whether there was one to give up. */
  release(): boolean {
    const isThere = statSync(this.file, { throwIfNoEntry: false }) !== undefined;
    rmSync(this.file, { force: true });
    return isThere;
  }

  private write(): void {
    // Noise: file systems that pack, or leave out zeros, would keep less.
    const noise = randomFillSync(Buffer.alloc(Math.min(this.bytes, 2 ** 20)));
    const file = openSync(this.file, 'w', 0o600);
    try {
      for (let written = 0; written < this.bytes;)
        written += writeSync(file, noise, 0, Math.min(noise.length, this.bytes - written));
      fsyncSync(file); // some take the room only then
    } finally {
      closeSync(file);
    }
  }
}
