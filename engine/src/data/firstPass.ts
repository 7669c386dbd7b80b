import { DataError } from './dataErrors.js';
import { divide, heldOutCandidates, type Division, type DocumentOptions } from './documents.js';
import { wholeFile, type RowPlace } from './filePart.js';
import { FirstDigests, type FirstDigestsMark, type HeldOutDigests } from './heldOutDigests.js';
import { InvalidRows, type RowCounts, type SkipInvalid } from './invalidRows.js';
import type { DatasetManifest } from './manifest.js';
import {
  digestSource,
  filePartsOf,
  readPart,
  readSource,
  type FileParts,
  type Source,
} from './readSource.js';
import type { SourceFile } from './regularFile.js';
import { SourceThreads, type SourceOrder, type SourceTask } from './sourceThreads.js';

/** Result of reading all files once. */
export interface FirstPass {
  sources: Source[];
  division: Division;
  /** Null if nothing is held out. */
  digests: HeldOutDigests | null;
  heldOutDocuments: number;
  /** UTF-8 bytes of all text. */
  textBytes: number;
  /** Null if no row was left out. */
  skipped: DatasetManifest['skipped'] | null;
}

/** Progress of a first pass: completed files, and completed parts of the next one. */
export interface FirstPassMark {
  sources: readonly Source[];
  parts: PartsMark;
  rows: RowCounts;
  digests: FirstDigestsMark | null;
}

/** Result of the parts of a file that were read so far. */
interface PartsMark {
  count: number;
  documents: number;
  textBytes: number;
  /** Where the next row begins. */
  place: RowPlace;
  stamps: string[];
}

const noParts = (): PartsMark => ({
  ...{ count: 0, documents: 0, textBytes: 0 },
  place: wholeFile().place,
  stamps: [],
});

/** Storage for the progress of a first pass. */
export interface FirstPassProgress {
  /** Progress of an earlier attempt. */
  readonly reading: FirstPassMark | undefined;
  readonly isDue: boolean;
  set(mark: { reading: FirstPassMark }): Promise<void>;
}

/**
 * Reads, counts and checks everything; files, and parts of large files, are read in parallel by the given number of threads. Each thread
 * guesses where the first row of its part begins; its result is used if the part before it ended there, and otherwise the part is read
 * again. Throws DataError; of several, the first in the order of the files.
 */
export async function firstPass(
  files: readonly SourceFile[],
  options: DocumentOptions & Pick<SourceOrder, 'chatOptions'>,
  skipInvalid: SkipInvalid | null,
  onProgress: (share: number) => void,
  signal: AbortSignal,
  threads: number,
  progress: FirstPassProgress,
): Promise<FirstPass> {
  const rows = new InvalidRows(skipInvalid);
  const { reading } = progress;
  if (reading !== undefined) rows.join(reading.rows);
  const sources: Source[] = [...(reading?.sources ?? [])];
  let parts = reading?.parts ?? noParts();
  const holdsOut = options.heldOutShare > 0 || files.some(({ split }) => split === 'heldOut');
  const digests = holdsOut
    ? new FirstDigests(heldOutCandidates(options), reading?.digests ?? undefined)
    : null;
  const apart = await apartOf(files, options, sources.length, parts.count);
  const { chat: _, ...given } = options;
  const order = {
    options: given,
    chatOptions: options.chatOptions,
    skipInvalid,
    comparesDocuments: holdsOut,
  };
  const isApart = threads > 1 && apart.tasks.length > 1;
  const done = 1 - apart.tasks.reduce((sum, { weight }) => sum + weight, 0);
  const readers = isApart
    ? new SourceThreads(order, apart.tasks, threads, (share) => onProgress(done + share))
    : null;
  const remember = async (): Promise<void> => {
    if (progress.isDue)
      await progress.set({ reading: { sources, parts, rows: rows.counts, digests: digests?.mark ?? null } });
  };

  /** The result of a thread's task, if there is one; otherwise the task is done here, with `onRest` for documents not yet delivered. */
  const found = async (task: number, source: SourceFile, begin = 0) => {
    let taken = 0;
    const onDocument = (digest: string, bytes: number): void => {
      taken++;
      digests?.add(digest, bytes, source.split);
    };
    const result = await readers?.take(task, begin, onDocument, signal);
    let known = taken;
    // Documents that a thread has already delivered are ignored.
    const onRest = (digest: string, bytes: number): void => {
      if (known-- <= 0) onDocument(digest, bytes);
    };
    return { result, onRest: digests && onRest };
  };

  const whole = async (source: SourceFile, index: number, task: number): Promise<Source> => {
    const { result, onRest } = await found(task, source);
    if (result !== undefined && 'source' in result && rows.join(result.rows)) return result.source;
    // Read here, so that the reported error is that of the first file that has one.
    const onShare = (share: number) => onProgress((index + share) / files.length);
    return await readSource(source, options, rows, onRest, onShare, signal);
  };

  const inParts = async (
    source: SourceFile,
    fileIndex: number,
    { parts: all, ...kind }: FileParts,
    task: number,
  ): Promise<Source> => {
    for (const [index, part] of all.slice(parts.count).entries()) {
      const before = parts.place;
      const { result, onRest } = await found(task + 1 + index, source, before.at);
      const onShare = (share: number) =>
        onProgress((fileIndex + (parts.count + share) / all.length) / files.length);
      const known =
        result !== undefined && 'part' in result && rows.joinUnplaced(result.rows) ? result.part : null;
      const order = { format: kind.format, part, place: before };
      const one = known ?? (await readPart(source, order, options, rows, onRest, onShare, signal));
      const { at, rows: rowCount, lines } = one.place;
      parts.place =
        known === null ? one.place : { at, rows: before.rows + rowCount, lines: before.lines + lines };
      parts.count++;
      parts.documents += one.documents;
      parts.textBytes += one.textBytes;
      if (!parts.stamps.includes(one.stamp)) parts.stamps.push(one.stamp);
      await remember();
    }
    const { result } = await found(task, source);
    const digest =
      result !== undefined && 'digest' in result ? result.digest : await digestSource(source, signal);
    const { documents, textBytes, stamps } = parts;
    if (stamps.some((stamp) => stamp !== digest.stamp))
      throw new DataError('FILE_CHANGED', { file: source.name });
    return { name: source.name, ...digest, ...kind, documents, textBytes };
  };

  try {
    for (let index = sources.length; index < files.length; index++) {
      const source = files[index]!;
      const { parts: all, task } = apart.files[index]!;
      const one = all === null ? await whole(source, index, task) : await inParts(source, index, all, task);
      sources.push(one);
      parts = noParts();
      await remember();
    }
  } finally {
    await readers?.close();
  }
  rows.end();
  const { division, ...totals } = divided(files, options, sources);
  return {
    ...{ sources, division, ...totals },
    digests: digests?.end(division) ?? null,
    skipped:
      rows.skippedCount === 0 ? null : { rows: rows.skippedCount, of: rows.rowCount, first: rows.skipped },
  };
}

/**
 * Tasks that can run in parallel, in order: for a file in parts its digest, then the parts. Without files, and parts of the next file, that
 * were already read.
 */
async function apartOf(
  files: readonly SourceFile[],
  options: DocumentOptions,
  filesRead: number,
  partsRead: number,
): Promise<{ tasks: SourceTask[]; files: { parts: FileParts | null; task: number }[] }> {
  const tasks: SourceTask[] = [];
  const each: { parts: FileParts | null; task: number }[] = [];
  for (const [index, source] of files.entries()) {
    const parts = index < filesRead ? null : await filePartsOf(source, options);
    each.push({ parts, task: tasks.length });
    if (index < filesRead) continue;
    if (parts === null) tasks.push({ source, of: 'file', weight: 1 / files.length });
    else {
      const weight = 1 / files.length / parts.parts.length;
      tasks.push({ source, of: 'digest', weight: 0 });
      const unread = parts.parts.slice(index === filesRead ? partsRead : 0);
      for (const part of unread) tasks.push({ source, of: { format: parts.format, part }, weight });
    }
  }
  return { tasks, files: each };
}

/** Determines the division from the counts of all files. Throws DATASET_EMPTY. */
function divided(
  files: readonly SourceFile[],
  options: DocumentOptions,
  sources: readonly Source[],
): Pick<FirstPass, 'division' | 'heldOutDocuments' | 'textBytes'> {
  const sum = (of: 'documents' | 'textBytes', split: SourceFile['split']) =>
    sources.reduce((total, source, index) => total + (files[index]!.split === split ? source[of] : 0), 0);
  const heldOutDocuments = sum('documents', 'heldOut');
  const auto = { documents: sum('documents', 'auto'), bytes: sum('textBytes', 'auto') };
  // Some text of the `auto` documents is always used for training.
  if (auto.documents + sum('documents', 'train') === 0) {
    throw new DataError('DATASET_EMPTY', { fileCount: files.length, heldOutDocumentCount: heldOutDocuments });
  }
  const textBytes = sources.reduce((total, source) => total + source.textBytes, 0);
  return { division: divide(options, auto), heldOutDocuments, textBytes };
}

/** A first pass as JSON: only what cannot be derived. */
export function firstPassToJson({ sources, digests, skipped }: FirstPass): string {
  const { heldOut = [], long = [] } = digests ?? {};
  return JSON.stringify({ sources, skipped, digests: digests && { heldOut: [...heldOut], long: [...long] } });
}

export function firstPassFromJson(
  json: string,
  files: readonly SourceFile[],
  options: DocumentOptions,
): FirstPass {
  const { sources, skipped, digests } = JSON.parse(json) as Pick<FirstPass, 'sources' | 'skipped'> & {
    digests: { heldOut: string[]; long: [number, string][] } | null;
  };
  return {
    ...{ sources, skipped, ...divided(files, options, sources) },
    digests: digests && { heldOut: new Set(digests.heldOut), long: new Map(digests.long) },
  };
}
