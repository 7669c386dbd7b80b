import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { basename, join } from 'node:path';
import { readDatasetNames } from '@relora/engine/plan';
import type { ArtifactCursor, ArtifactStore } from '../artifacts/artifactStore.js';
import type { Dataset } from '../datasets/dataset.js';
import type { DatasetStore } from '../datasets/datasetStore.js';
import type { Checkpoint, CheckpointStore } from '../jobs/checkpointStore.js';
import type { Job } from '../jobs/job.js';
import type { JobJournal } from '../jobs/jobJournal.js';
import type { JobStore } from '../jobs/jobStore.js';
import { BlobDamaged, type Stage } from '../store/stage.js';
import { namesIn } from '../store/diskFiles.js';
import { idIn, nameOf, tenantOf } from '../store/tenantIds.js';
import { version } from '../version.js';
import { orDamaged } from './damaged.js';
import { archiveVersion, type exportedStates, type LineOf } from './jobRecord.js';

export interface ArchiveFile {
  fileName: string;
  sizeBytes: number;
  sha256: string;
}

export interface ArchiveParts {
  store: JobStore;
  journal: JobJournal;
  checkpoints: CheckpointStore;
  artifacts: ArtifactStore;
  datasets: DatasetStore;
  stage: Stage;
  identity: { readonly id: string };
}

/** A file of an archive by name; undefined if there is none, and for the record. */
export async function findArchiveFile(
  parts: ArchiveParts,
  job: Job,
  fileName: string,
): Promise<ArchiveFile | undefined> {
  const linesOf = { checkpoints: checkpointLines, artifacts: artifactLines, datasets: datasetLines };
  const [kind, wantedId] = fileName.split('/') as [string, string | undefined];
  if (!Object.hasOwn(linesOf, kind)) return undefined;
  const lines = await linesOf[kind as keyof typeof linesOf](parts, job, (id) => id === wantedId);
  return filesIn(lines).find((file) => file.fileName === fileName);
}

/** The files of lines, with their folders in an archive. */
export function filesIn(lines: readonly LineOf<'checkpoint' | 'artifact' | 'dataset'>[]): ArchiveFile[] {
  return lines.flatMap((line) =>
    line.files.map((file) => ({ ...file, fileName: `${archiveFolder(line)}/${file.fileName}` })),
  );
}

function archiveFolder(line: LineOf<'checkpoint' | 'artifact' | 'dataset'>): string {
  if (line.kind === 'dataset') return line.name;
  return line.kind === 'artifact' ? `artifacts/${line.id}` : `checkpoints/${line.folder}`;
}

/** Selects checkpoints, artifacts or data sets by the name of their folder in an archive. */
type IsWanted = (id: string) => boolean;
const all: IsWanted = () => true;

/** The job itself, without what belongs to it. */
export async function jobLine({ datasets, identity }: ArchiveParts, job: Job): Promise<LineOf<'job'>> {
  const named: LineOf<'job'>['datasets'] = [];
  for (const name of readDatasetNames(job.spec)) {
    const head = await datasets.findHead(idIn(tenantOf(job.id), name.replace(/^datasets\//, '')));
    if (head?.prepared) named.push({ name, manifestSha256: head.prepared.manifestSha256 });
  }
  const { displayName, labels, stateReason, failure, progress, attempt, lastSequence } = job;
  const { createTimeMs, updateTimeMs, startTimeMs, endTimeMs, execution, origin } = job;
  return {
    kind: 'job',
    formatVersion: archiveVersion,
    serverVersion: version,
    storeId: identity.id,
    id: nameOf(job.id),
    ...{ displayName, labels, spec: { ...job.spec }, stateReason, failure, progress, attempt, lastSequence },
    ...{ createTimeMs, updateTimeMs, startTimeMs, endTimeMs, execution: execution && { ...execution } },
    state: job.state as (typeof exportedStates)[number],
    origin: origin && { job: `jobs/${nameOf(origin.jobId)}`, step: origin.step },
    datasets: named,
  };
}

/** Checkpoints with the files in their manifests, and the manifests themselves; without those that are removed meanwhile. */
export async function checkpointLines(
  parts: ArchiveParts,
  job: Job,
  isWanted = all,
): Promise<LineOf<'checkpoint'>[]> {
  const lines: LineOf<'checkpoint'>[] = [];
  const kept = await parts.checkpoints.list(job.id);
  for (const checkpoint of kept.filter(({ folder }) => isWanted(basename(folder))))
    try {
      lines.push(
        await orDamaged(`jobs/${nameOf(job.id)}`, async () => await checkpointLine(parts, job, checkpoint)),
      );
    } catch (error) {
      const listed = await parts.checkpoints.list(job.id);
      if (listed.some(({ folder }) => folder === checkpoint.folder)) throw error;
    }
  return lines;
}

async function checkpointLine(
  { stage }: ArchiveParts,
  job: Job,
  { folder, attempt, step, sizeBytes, manifestSha256, createTimeMs }: Checkpoint,
): Promise<LineOf<'checkpoint'>> {
  const name = basename(folder);
  const release = await stage.take(`jobs/${job.id}/checkpoints/${name}`);
  try {
    const text = await readManifest(folder, manifestSha256);
    const { files } = JSON.parse(text.toString()) as { files: Record<string, ArchiveFile> };
    const manifest = { fileName: manifestFile, sizeBytes: text.length, sha256: manifestSha256 };
    const named = Object.values(files).map(({ fileName, sizeBytes: bytes, sha256 }) => ({
      ...{ fileName, sizeBytes: bytes, sha256 },
    }));
    return {
      kind: 'checkpoint',
      ...{ attempt, step, folder: name, sizeBytes, manifestSha256, createTimeMs },
      files: [...named, manifest],
    };
  } finally {
    release();
  }
}

export const manifestFile = 'manifest.json';

async function readManifest(folder: string, sha256: string): Promise<Buffer> {
  const text = await readFile(join(folder, manifestFile));
  if (createHash('sha256').update(text).digest('hex') !== sha256)
    throw new BlobDamaged(`${manifestFile} of ${folder} is not what was sealed`);
  return text;
}

/** Artifacts that are ready. */
export async function artifactLines(
  { artifacts }: ArchiveParts,
  job: Job,
  isWanted = all,
): Promise<LineOf<'artifact'>[]> {
  const lines: LineOf<'artifact'>[] = [];
  for (let after: ArtifactCursor | null = null; ;) {
    const page = await artifacts.list(job.id, { after, artifactsMax: 100 });
    for (const {
      id,
      state,
      step,
      format,
      weightType,
      castErrorMax,
      difference,
      cycle,
      createTimeMs,
      files,
    } of page.artifacts)
      if (state === 'ready' && isWanted(id))
        lines.push({
          kind: 'artifact',
          ...{ id, step, format, weightType, castErrorMax, difference, cycle, createTimeMs, files },
        });
    if (page.next === null) return lines;
    after = page.next;
  }
}

/** Ready data sets that the job reads, with the files of their prepared folders. */
export async function datasetLines(
  parts: ArchiveParts,
  job: Job,
  isWanted = all,
): Promise<LineOf<'dataset'>[]> {
  const lines: LineOf<'dataset'>[] = [];
  for (const name of new Set(readDatasetNames(job.spec))) {
    const ownId = name.replace(/^datasets\//, '');
    if (!isWanted(ownId)) continue;
    const id = idIn(tenantOf(job.id), ownId);
    const found = await parts.datasets.find(id);
    if (found === undefined || found.deleteTimeMs !== null) continue;
    const { prepared } = found;
    if (prepared === null) continue;
    lines.push(await orDamaged(name, async () => await datasetLine(parts, name, found, prepared)));
  }
  return lines;
}

async function datasetLine(
  { datasets, stage }: ArchiveParts,
  name: string,
  { id, displayName, labels, spec, createTimeMs, files: given }: Dataset,
  prepared: NonNullable<Dataset['prepared']>,
): Promise<LineOf<'dataset'>> {
  const release = await stage.take(`datasets/${id}/prepared`);
  try {
    const { manifestSha256 } = prepared;
    const files = await preparedFiles(datasets.preparedFolder(id), manifestSha256);
    const sources = given.map(({ fileName, format, split, sizeBytes, sha256 }, index) => ({
      ...{ fileName, format: prepared.formats?.[index] ?? format, split, sizeBytes, sha256 },
    }));
    return {
      kind: 'dataset',
      ...{ name, displayName, labels, spec, createTimeMs, manifestSha256, sources, files },
    } as LineOf<'dataset'>;
  } finally {
    release();
  }
}

/** The digests of tokens are in the manifest; a few small files are hashed. */
async function preparedFiles(folder: string, manifestSha256: string): Promise<ArchiveFile[]> {
  const manifest = JSON.parse((await readManifest(folder, manifestSha256)).toString()) as Prepared;
  const known = new Map([[manifestFile, manifestSha256]]);
  for (const { mask, ends, ...tokens } of [...manifest.train.shards, ...manifest.heldOut.shards])
    for (const each of [tokens, mask, ends]) if (each !== undefined) known.set(each.file, each.sha256);
  const files: ArchiveFile[] = [];
  for (const fileName of (await namesIn(folder)).sort()) {
    const path = join(folder, fileName);
    const sha256 = known.get(fileName) ?? (await sha256Of(path));
    files.push({ fileName, sizeBytes: (await stat(path)).size, sha256 });
  }
  return files;
}

/** The relevant part of a manifest, which our own preparation wrote. */
type Prepared = Record<'train' | 'heldOut', { shards: (Digested & { mask?: Digested; ends?: Digested })[] }>;
interface Digested {
  file: string;
  sha256: string;
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest('hex');
}
