import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { publish, syncFolder, writeNewFile } from '../io/durableFile.js';
import { isDiskFault } from '../io/diskFault.js';
import type { EndTokens } from '../plan/endTokens.js';
import { ChatTemplate, type ChatOptions } from './chatTemplate.js';
import { defaultLimits, type DataLimits } from './dataLimits.js';
import { tokenizerJson } from './datasetTokenizer.js';
import { isMasked, type DocumentOptions } from './documents.js';
import { EncoderThreads, ownEncoder } from './encoders.js';
import { firstPass, firstPassFromJson, firstPassToJson } from './firstPass.js';
import type { SkipInvalid } from './invalidRows.js';
import { manifestFile, readManifest, tokenizerFile, type DatasetManifest } from './manifest.js';
import type { Pass } from './placedPieces.js';
import { makeFolder, PreparationProgress, sha256 } from './preparationProgress.js';
import { checkOptions } from './prepareOptions.js';
import { RegularFile, type SourceFile } from './regularFile.js';
import type { SourceFormat } from './sourceFormat.js';
import { bytesTokenizer, jsonTokenizer } from './tokenizer.js';
import { writeSplits } from './writeSplits.js';

export interface PrepareOptions {
  files: readonly SourceFile[];
  /** Folder to create; must not exist. */
  outputFolder: string;
  tokenizer:
    | { kind: 'bytes' }
    | { kind: 'trainedBpe'; vocabularySize: number }
    | { kind: 'huggingFace'; tokenizerJson: string; endTokens?: EndTokens };
  /** Field of JSONL lines and Parquet rows. */
  textField: string;
  /** Fields of a prompt and its completion, of which only the latter is learned; instead of `textField`. */
  pairFields?: { prompt: string; completion: string };
  /** Chats, of which only the assistant's messages are learned; instead of `textField`. */
  chat?: ChatOptions;
  /** 0 to 0.5. */
  heldOutShare: number;
  seed: number;
  /** Leaves out rows with invalid fields, up to this limit; without it the first one is an error. */
  skipInvalid?: SkipInvalid;
  limits?: Partial<DataLimits>;
  /** Threads that encode, default 1. The result does not depend on it. */
  threads?: number;
  /**
   * A separate folder in which a preparation stores its progress. A preparation of the same files and options that finds it there continues
   * after what is on disk, and then the output folder may exist; progress of another preparation is removed.
   */
  progress?: {
    folder: string;
    /** Interval at which written data is made durable; default 5 s, which loses little and costs nothing. */
    everyMs?: number;
  };
}

export interface PreparedFolder {
  manifest: DatasetManifest;
  /** The detected format of each source. */
  formats: SourceFormat[];
}

/**
 * Reads, divides and tokenizes text into shards that are read by position. The same files and options give the same bytes. The first pass
 * reads, counts and checks everything; a second gathers training text for a vocabulary; the last writes. Throws DataError, or the signal's
 * reason; then the folder is not complete and has no manifest.
 * @param onProgress fraction done, 0 to 1
 */
export async function prepareDataset(
  options: PrepareOptions,
  onProgress: (share: number) => void,
  signal: AbortSignal,
): Promise<PreparedFolder> {
  checkOptions(options);
  const { files, outputFolder: folder, chat } = options;
  const documents: DocumentOptions = {
    ...options,
    chat: chat === undefined ? null : new ChatTemplate(chat),
    fields: fieldsOf(options),
    limits: { ...defaultLimits, ...options.limits },
  };
  const progress = await progressOf(options);
  if (!progress.isKept) await mkdir(folder, { recursive: false });
  else {
    if (progress.isNew) await rm(folder, { recursive: true, force: true });
    await makeFolder(folder);
  }

  const skipInvalid = options.skipInvalid ?? null;
  const read = async () =>
    await firstPass(
      files,
      { ...documents, chatOptions: chat ?? null },
      skipInvalid,
      part(onProgress, 0, 0.2),
      signal,
      options.threads ?? 1,
      progress,
    );
  const first = progress.isKept
    ? firstPassFromJson(await progress.firstPass(async () => firstPassToJson(await read())), files, documents)
    : await read();
  const formats = first.sources.map(({ format }) => format);
  if (progress.manifest !== undefined) {
    // The folder may have been moved away; then it is created again.
    const known = await readManifest(folder).catch((error: unknown) => {
      if (isDiskFault(error)) throw error;
      return undefined;
    });
    if (known?.sha256 === progress.manifest) return { manifest: known.manifest, formats };
    await progress.set({ manifest: undefined });
  }
  await rm(join(folder, manifestFile), { force: true });
  const later = (from: number, to: number): Pass => ({
    ...first,
    files,
    documents,
    skipInvalid,
    progress: part(onProgress, from, to),
    signal,
  });
  const trained = options.tokenizer.kind === 'trainedBpe';
  const json = await keptTokenizer(folder, progress, async () =>
    tokenizerJson(options.tokenizer, folder, later(0.2, 0.3)),
  );
  const endTokens = options.tokenizer.kind === 'huggingFace' ? options.tokenizer.endTokens : undefined;
  const { kind } = options.tokenizer;
  const tokenizer =
    kind === 'bytes'
      ? bytesTokenizer()
      : await jsonTokenizer(json, kind, {
          signal,
          isTrusted: trained,
          cpuSeconds: documents.limits.tokenizerCpuSeconds,
          endTokens,
        });

  const threads = options.threads ?? 1;
  // Bytes are encoded faster than they could be passed to another thread.
  const encoders =
    kind === 'bytes' || threads === 1
      ? ownEncoder(tokenizer)
      : new EncoderThreads({ json, kind, endTokens }, threads);
  const { train, heldOut, tokenBytes, unknown } = await writeSplits(
    { tokenizer, encoders, folder, progress },
    later(trained ? 0.4 : 0.2, 0.99),
  ).finally(async () => await encoders.close());
  const { vocabularySize, endOfTextId } = tokenizer;
  const manifest: DatasetManifest = {
    formatVersion: isMasked(documents) ? 2 : 1,
    tokenizer: { kind, vocabularySize, endOfTextId, sha256: sha256(json) },
    tokenBytes,
    train,
    heldOut,
    sources: first.sources.map(({ name, sizeBytes, sha256 }) => ({ name, sizeBytes, sha256 })),
    // Omitted if empty, so that such manifests have the same form as before.
    ...(first.skipped === null ? {} : { skipped: first.skipped }),
    ...(unknown && { unknown }),
  };
  // Written last, and renamed once complete: if there is a manifest, everything it names is on disk.
  const manifestJson = `${JSON.stringify(manifest, null, 2)}\n`;
  await rm(join(folder, `${manifestFile}.tmp`), { force: true });
  await writeNewFile(join(folder, `${manifestFile}.tmp`), manifestJson);
  await syncFolder(folder);
  await publish(join(folder, `${manifestFile}.tmp`), join(folder, manifestFile));
  await progress.set({ manifest: sha256(manifestJson) });
  onProgress(1);
  return { manifest, formats };
}

function fieldsOf({ chat, pairFields, textField }: PrepareOptions): DocumentOptions['fields'] {
  if (chat !== undefined) return [chat.field];
  return pairFields ? [pairFields.prompt, pairFields.completion] : [textField];
}

/** The stored progress of an earlier attempt with the same files and options; empty if progress is not stored. */
async function progressOf(options: PrepareOptions): Promise<PreparationProgress> {
  const { files, outputFolder: _, progress, threads: __, ...rest } = options;
  if (progress === undefined) return PreparationProgress.none();
  const found: unknown[] = [];
  for (const source of files) {
    const file = await RegularFile.open(source);
    found.push([source.name, source.format, source.split, file.stamp]);
    await file.close();
  }
  return await PreparationProgress.open(
    progress.folder,
    sha256(JSON.stringify([streamVersion, found, rest])),
    progress.everyMs,
  );
}

/** Version of the stored progress: another version starts over. */
const streamVersion = 3;

/** The folder's tokenizer.json, which is made only once. */
async function keptTokenizer(
  folder: string,
  progress: PreparationProgress,
  make: () => Promise<string>,
): Promise<string> {
  const path = join(folder, tokenizerFile);
  if (progress.tokenizer !== undefined) {
    const known = await readFile(path, 'utf8').catch(() => '');
    if (sha256(known) === progress.tokenizer) return known;
  }
  await rm(path, { force: true });
  const json = await make();
  await writeNewFile(path, json);
  await syncFolder(folder);
  // What was written so far used a different tokenizer, if any.
  await progress.set({ tokenizer: sha256(json), written: undefined });
  return json;
}

/** Maps a pass's progress to a range of the whole, in steps of one percent. */
function part(onProgress: (share: number) => void, from: number, to: number): (share: number) => void {
  let reported = from;
  return (share) => {
    const whole = from + (to - from) * Math.min(1, share);
    if (whole - reported < 0.01) return;
    reported = whole;
    onProgress(whole);
  };
}
