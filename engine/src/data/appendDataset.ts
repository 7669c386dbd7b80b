import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, link, mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { publish, syncFolder, writeNewFile } from '../io/durableFile.js';
import { DataError } from './dataErrors.js';
import {
  heldOutTextFile,
  manifestFile,
  readManifest,
  tokenizerFile,
  type DatasetManifest,
  type ShardEntry,
  type SplitEntry,
} from './manifest.js';
import { unknownShareMin } from './lostText.js';
import { joinSources } from './sourceDocuments.js';

/**
 * Creates a data set from a prepared one and an addition to it: `folder`, which must be new, gets the tokens of both, those of the base
 * first. Both originals stay as they are; their shards are linked if the disk allows that. Both must have the same tokenizer; throws
 * DataError DATASET_CORRUPT.
 */
export async function appendDataset(
  baseFolder: string,
  addedFolder: string,
  folder: string,
): Promise<DatasetManifest> {
  const { manifest: base } = await readManifest(baseFolder);
  const { manifest: added } = await readManifest(addedFolder);
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
  await mkdir(folder);
  const splits = [
    { folder: baseFolder, ...base },
    { folder: addedFolder, ...added },
  ] as const;
  const train = await joined(splits, 'train', folder);
  const heldOut = await joined(splits, 'heldOut', folder);
  await linkOrCopy(join(addedFolder, tokenizerFile), join(folder, tokenizerFile));
  await joinSources(baseFolder, addedFolder, folder);
  await joinTexts(
    splits.map((split) => join(split.folder, heldOutTextFile)),
    join(folder, heldOutTextFile),
  );
  const unknown = joinedUnknown([base, added]);
  const skipped = [base.skipped, added.skipped].filter((each) => each !== undefined);
  const { unknown: _, ...withoutUnknown } = added;
  const manifest: DatasetManifest = {
    ...withoutUnknown,
    tokenizer: base.tokenizer,
    ...{ train, heldOut },
    sources: [...base.sources, ...added.sources],
    ...(unknown && { unknown }),
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
  await publish(join(folder, `${manifestFile}.tmp`), join(folder, manifestFile));
  return manifest;
}

const firstSkippedMax = 20;

/** Puts the shards of both into one folder; those of the base keep their numbers. */
async function joined(
  [base, added]: readonly [PreparedSplits, PreparedSplits],
  which: 'train' | 'heldOut',
  folder: string,
): Promise<SplitEntry> {
  const link = async (from: PreparedSplits, file: string, by: number): Promise<string> => {
    const name = file.replace(/\d{5,}/, (number) => String(Number(number) + by).padStart(5, '0'));
    await linkOrCopy(join(from.folder, file), join(folder, name));
    return name;
  };
  const shards: ShardEntry[] = [];
  for (const [from, by] of [
    [base, 0],
    [added, base[which].shards.length],
  ] as const)
    for (const shard of from[which].shards) {
      const file = await link(from, shard.file, by);
      const mask = shard.mask && { ...shard.mask, file: await link(from, shard.mask.file, by) };
      const ends = shard.ends && { ...shard.ends, file: await link(from, shard.ends.file, by) };
      shards.push({ ...shard, file, ...(mask && { mask }), ...(ends && { ends }) });
    }
  const [first, second] = [base[which], added[which]];
  const duplicates = (first.duplicates ?? 0) + (second.duplicates ?? 0);
  const endsWithin = (first.endsWithin ?? 0) + (second.endsWithin ?? 0);
  return {
    tokens: first.tokens + second.tokens,
    documents: first.documents + second.documents,
    bytes: first.bytes + second.bytes,
    ...(first.trained &&
      second.trained && {
        trained: {
          tokens: first.trained.tokens + second.trained.tokens,
          bytes: first.trained.bytes + second.trained.bytes,
        },
      }),
    ...(duplicates > 0 && { duplicates }),
    ...(endsWithin > 0 && { endsWithin }),
    shards,
  };
}

/** Statistics of unknown text over both. */
function joinedUnknown(of: readonly DatasetManifest[]): DatasetManifest['unknown'] {
  const bytesOf = ({ train, heldOut }: DatasetManifest) => train.bytes + heldOut.bytes;
  const bytes = of.reduce((sum, each) => sum + bytesOf(each), 0);
  const unknownBytes = of.reduce((sum, each) => sum + (each.unknown?.share ?? 0) * bytesOf(each), 0);
  const first = of.find(({ unknown }) => unknown !== undefined)?.unknown?.first;
  const share = unknownBytes / bytes;
  return first !== undefined && share >= unknownShareMin ? { share, first } : undefined;
}

type PreparedSplits = Pick<DatasetManifest, 'train' | 'heldOut'> & { folder: string };

async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    // A process that may only read the base must not link it into a folder that it can write.
    if (
      !['EXDEV', 'EACCES', 'EPERM', 'ENOTSUP', 'EMLINK'].includes((error as NodeJS.ErrnoException).code ?? '')
    )
      throw error;
    await copyFile(from, to);
    const copy = await open(to, 'r');
    await copy.sync().finally(async () => await copy.close());
  }
}

/** Concatenates the held-out texts. */
async function joinTexts(from: readonly string[], whole: string): Promise<void> {
  for (const path of from) await pipeline(createReadStream(path), createWriteStream(whole, { flags: 'a' }));
  const file = await open(whole, 'r');
  await file.sync().finally(async () => await file.close());
}
