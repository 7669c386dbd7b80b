import { createHash } from 'node:crypto';
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { syncFolder } from '../io/durableFile.js';
import type { FirstPassMark } from './firstPass.js';
import type { LongTextState } from './longText.js';
import type { LostTextMark } from './lostText.js';
import type { SourceDocuments } from './sourceDocuments.js';
import type { SplitMark } from './splitWriter.js';

/** How far the text was encoded and written. */
export interface WrittenMark {
  /** The file of the next piece, and how many of its pieces are written. */
  file: number;
  pieces: number;
  /** Bytes of text of that file. */
  textBytes: number;
  /** Documents dropped as duplicates from the files before it. */
  duplicates: number;
  /** State of the encoder; null between two texts. */
  long: LongTextState | null;
  lost: LostTextMark;
  /** Sources of the training part. */
  sources: SourceDocuments[];
  train: SplitMark;
  heldOut: SplitMark;
}

interface Kept {
  /** Hash of everything that determines the result of the preparation. */
  key: string;
  /** Progress of the first pass. */
  reading?: FirstPassMark;
  /** SHA-256 of the first pass's result. */
  firstPass?: string;
  /** SHA-256 of tokenizer.json. */
  tokenizer?: string;
  written?: WrittenMark;
  /** The preparation is complete, with a manifest of this SHA-256. */
  manifest?: string;
}

const firstPassFile = 'first-pass.json';
const progressFile = 'progress.json';

/**
 * Progress that a preparation stores in a folder of its own, so that an interrupted one continues there. Each entry is written only after
 * the data that it describes is on disk.
 */
export class PreparationProgress {
  private setMs = performance.now();

  private constructor(
    /** Null: progress is not stored. */
    private readonly folder: string | null,
    private kept: Kept,
    private readonly everyMs = 5000,
  ) {}

  static none(): PreparationProgress {
    return new PreparationProgress(null, { key: '' });
  }

  /** Opens the folder's progress if it belongs to the same preparation; otherwise starts empty, with `isNew`. */
  static async open(folder: string, key: string, everyMs?: number): Promise<PreparationProgress> {
    const text = await readFile(join(folder, progressFile), 'utf8').catch(() => '{}');
    const kept = parse(text);
    if (kept?.key === key) return new PreparationProgress(folder, kept, everyMs);
    await rm(folder, { recursive: true, force: true });
    await makeFolder(folder);
    const progress = new PreparationProgress(folder, { key }, everyMs);
    await progress.save();
    return progress;
  }

  get isNew(): boolean {
    const { firstPass, tokenizer, manifest } = this.kept;
    return firstPass === undefined && tokenizer === undefined && manifest === undefined;
  }

  get isKept(): boolean {
    return this.folder !== null;
  }

  get reading(): FirstPassMark | undefined {
    return this.kept.reading;
  }

  get tokenizer(): string | undefined {
    return this.kept.tokenizer;
  }

  get written(): WrittenMark | undefined {
    return this.kept.written;
  }

  get manifest(): string | undefined {
    return this.kept.manifest;
  }

  /** The JSON that `make` returns, or returned in an earlier attempt. */
  async firstPass(make: () => Promise<string>): Promise<string> {
    if (this.folder === null) return await make();
    const path = join(this.folder, firstPassFile);
    if (this.kept.firstPass !== undefined) {
      const known = await readFile(path, 'utf8').catch(() => '');
      if (sha256(known) === this.kept.firstPass) return known;
    }
    const made = await make();
    await writeWhole(path, made);
    await this.set({ firstPass: sha256(made), reading: undefined });
    return made;
  }

  /** Whether progress should be stored now. */
  get isDue(): boolean {
    return this.folder !== null && performance.now() - this.setMs > this.everyMs;
  }

  async set(more: Partial<Omit<Kept, 'key'>>): Promise<void> {
    this.kept = { ...this.kept, ...more };
    await this.save();
    this.setMs = performance.now();
  }

  private async save(): Promise<void> {
    if (this.folder !== null) await writeWhole(join(this.folder, progressFile), JSON.stringify(this.kept));
  }
}

export function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

function parse(text: string): Kept | undefined {
  try {
    return JSON.parse(text) as Kept;
  } catch {
    return undefined; // it is written atomically, so something else wrote it
  }
}

/** Writes to another name, and renames once the data is on disk. */
async function writeWhole(path: string, text: string): Promise<void> {
  const file = await open(`${path}.tmp`, 'w');
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.tmp`, path);
  await syncFolder(join(path, '..'));
}

/** Creates a folder if it does not exist. Not recursive, because then a read-only disk is reported as a missing folder. */
export async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
}
