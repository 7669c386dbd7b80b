import { createHash } from 'node:crypto';
import { readFileSync, readSync, renameSync, writeFileSync } from 'node:fs';
import { DataError } from './dataErrors.js';
import type { FileCheck } from './tokenSplit.js';

const blockBytes = 4 * 2 ** 20;

/**
 * Checks files of a data set against their SHA-256, once per job: verified files are recorded with their size, time and inode, so that an
 * attempt that resumes reads only what it trains on.
 */
export class CheckedShards {
  /** SHA-256 and stamp of each file: several data sets may have files with the same content. */
  private readonly found: Set<string>;

  /** @param path file that records what was verified; null: in memory only */
  constructor(private readonly path: string | null) {
    this.found = new Set(path === null ? [] : readFound(path));
  }

  /** Throws DataError DATASET_CORRUPT. */
  readonly check: FileCheck = ({ descriptor, name, sha256, stamp }) => {
    if (this.found.has(`${sha256} ${stamp}`)) return;
    const got = digestOf(descriptor);
    if (got !== sha256)
      throw new DataError('DATASET_CORRUPT', { file: name, expected: `SHA-256 ${sha256}`, got });
    this.found.add(`${sha256} ${stamp}`);
    if (this.path === null) return;
    // If a crash loses it, files are verified again; written in place, it could end up as invalid JSON.
    writeFileSync(`${this.path}.tmp`, JSON.stringify([...this.found]));
    renameSync(`${this.path}.tmp`, this.path);
  };
}

function digestOf(descriptor: number): string {
  const hash = createHash('sha256');
  const block = Buffer.allocUnsafe(blockBytes);
  for (let position = 0; ;) {
    const count = readSync(descriptor, block, 0, blockBytes, position);
    if (count === 0) return hash.digest('hex');
    hash.update(block.subarray(0, count));
    position += count;
  }
}

function readFound(path: string): string[] {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as string[];
  } catch {
    return []; // then all files are verified
  }
}
