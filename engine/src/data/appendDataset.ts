import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, link, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { syncFolder, writeNewFile } from '../io/durableFile.js';
import { DataError } from './dataErrors.js';
import {
  manifestFile,
  readManifest,
  type DatasetManifest,
  type ShardEntry,
  type SplitEntry,
} from './manifest.js';
import { heldOutTextFile } from './prepareDataset.js';

/**
 * Puts a prepared data set before another: `folder` has the tokens of both then, those of the base first. The base stays as it is, and its
 * shards are linked where the disk allows that. Both must have one tokenizer; throws DataError DATASET_CORRUPT.
 */
export async function appendDataset(baseFolder: string, folder: string): Promise<DatasetManifest> {
  const { manifest: base } = await readManifest(baseFolder);
  const { manifest: added } = await readManifest(folder);
  for (const [what, expected, got] of [
    ['tokenizer', base.tokenizer.sha256, added.tokenizer.sha256],
    ['token after a text', base.tokenizer.endOfTextId, added.tokenizer.endOfTextId],
    ['format', base.formatVersion, added.formatVersion],
  ])
    if (expected !== got)
      throw new DataError('DATASET_CORRUPT', {
        ...{ file: manifestFile, expected: `${what} ${expected}, as the base has` },
        got: String(got),
      });
  // Without a manifest the folder is not complete, whatever ends this on the way.
  await rm(join(folder, manifestFile));
  const train = await joined(baseFolder, base.train, folder, added.train);
  const heldOut = await joined(baseFolder, base.heldOut, folder, added.heldOut);
  await joinTexts(join(baseFolder, heldOutTextFile), join(folder, heldOutTextFile));
  const skipped = [base.skipped, added.skipped].filter((each) => each !== undefined);
  const manifest: DatasetManifest = {
    ...added,
    tokenizer: base.tokenizer,
    ...{ train, heldOut },
    sources: [...base.sources, ...added.sources],
    ...(skipped.length > 0 && {
      skipped: {
        rows: skipped.reduce((sum, { rows }) => sum + rows, 0),
        of: skipped.reduce((sum, each) => sum + each.of, 0),
        first: skipped.flatMap(({ first }) => first).slice(0, firstSkippedMax),
      },
    }),
  };
  await writeNewFile(join(folder, `${manifestFile}.tmp`), `${JSON.stringify(manifest, null, 2)}\n`);
  await syncFolder(folder);
  await rename(join(folder, `${manifestFile}.tmp`), join(folder, manifestFile));
  await syncFolder(folder);
  return manifest;
}

const firstSkippedMax = 20;

/** The shards of both in one folder, those of the base with their numbers. */
async function joined(
  baseFolder: string,
  base: SplitEntry,
  folder: string,
  added: SplitEntry,
): Promise<SplitEntry> {
  const moved: ShardEntry[] = [];
  // From the last on, so that none is renamed to a name that another still has.
  for (const shard of [...added.shards].reverse()) {
    const file = await renumber(folder, shard.file, base.shards.length);
    const mask = shard.mask && {
      ...shard.mask,
      file: await renumber(folder, shard.mask.file, base.shards.length),
    };
    moved.unshift({ ...shard, file, ...(mask && { mask }) });
  }
  for (const { file, mask } of base.shards)
    for (const name of mask === undefined ? [file] : [file, mask.file])
      await linkOrCopy(join(baseFolder, name), join(folder, name));
  const sum = (of: (split: SplitEntry) => number) => of(base) + of(added);
  const duplicates = sum((split) => split.duplicates ?? 0);
  return {
    tokens: sum((split) => split.tokens),
    documents: sum((split) => split.documents),
    bytes: sum((split) => split.bytes),
    ...(base.trained &&
      added.trained && {
        trained: {
          tokens: base.trained.tokens + added.trained.tokens,
          bytes: base.trained.bytes + added.trained.bytes,
        },
      }),
    ...(duplicates > 0 && { duplicates }),
    shards: [...base.shards, ...moved],
  };
}

async function renumber(folder: string, file: string, by: number): Promise<string> {
  const name = file.replace(/\d{5,}/, (number) => String(Number(number) + by).padStart(5, '0'));
  if (name !== file) await rename(join(folder, file), join(folder, name));
  return name;
}

async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    // A process that may only read the base must not link it to where it may write.
    if (
      !['EXDEV', 'EACCES', 'EPERM', 'ENOTSUP', 'EMLINK'].includes((error as NodeJS.ErrnoException).code ?? '')
    )
      throw error;
    await copyFile(from, to);
    const copy = await open(to, 'r');
    await copy.sync().finally(async () => await copy.close());
  }
}

/** The held-out text of the base before that which was added. */
async function joinTexts(base: string, added: string): Promise<void> {
  const whole = `${added}.tmp`;
  await pipeline(createReadStream(base), createWriteStream(whole, { flags: 'wx' }));
  await pipeline(createReadStream(added), createWriteStream(whole, { flags: 'a' }));
  const file = await open(whole, 'r');
  await file.sync().finally(async () => await file.close());
  await rename(whole, added);
}
