import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { separateGraphs, type LayerGraphs } from '../plan/adapterGraphs.js';
import type { ModelFiles } from '../model/modelFiles.js';
import type { AdapterSettings, LlamaConfig, Phase } from '../plan/runSpec.js';
import { laterDefaults } from '../plan/storedRunSpec.js';
import type { MomentGroup } from './optimizerMethods.js';
import type { Duty } from './steering.js';
import type { RunProgress } from './trainingRun.js';
import { CheckpointCorrupt, CheckpointUnknownFormat } from './checkpointErrors.js';
import { digestFile, type FileDigest } from '../io/durableFile.js';
import { isDiskFault } from '../io/diskFault.js';

export const checkpointFormatVersion = 1;

/** `manifest.json` of a checkpoint: its files, and all state that is not a tensor. */
export interface CheckpointManifest {
  formatVersion: number;
  engineVersion: string;
  specSha256: string;
  /** SHA-256 of the data set's manifest. */
  datasetSha256: string;
  model: LlamaConfig;
  /** SHA-256 of the weights that the run started from; null for new ones. Absent in old checkpoints. */
  baseWeightsSha256?: string | null;
  /** Texts of the model files next to those weights, for exports; absent if there are none. */
  modelFiles?: ModelFiles;
  /** Null while the model has no adapters. */
  adapter: AdapterSettings | null;
  /** How adapted layers were computed. */
  graphs: LayerGraphs;
  /** Phase of the next step. */
  phase: Phase;
  progress: RunProgress;
  position: { seed: number; firstSequence: number };
  /** When each duty of the run was last done, milliseconds since 1970; absent in old checkpoints. */
  doneMs?: Partial<Record<Duty, number>>;
  optimizerStepCounts: Record<MomentGroup, number>;
  /** What computed the weights; on a different backend a resumed run continues, but not bit for bit. */
  backend: {
    name: string;
    instructionSet: string | null;
    precision: string;
    /** Absent in old checkpoints, in which it equals the precision of products. */
    basePrecision?: string;
    cpuModel: string;
    /** Absent if no library affects the bits. */
    libraries?: Readonly<Record<string, string>>;
  };
  /** Processes that trained together; absent for one. */
  replicas?: number;
  files: {
    base: FileDigest;
    shared: FileDigest;
    moments: FileDigest;
    adapters?: FileDigest;
    start?: FileDigest;
  };
}

export type CheckpointFile = keyof CheckpointManifest['files'];

export interface VerifiedCheckpoint {
  manifest: CheckpointManifest;
  manifestSha256: string;
  /** Total size of all files. */
  sizeBytes: number;
}

/**
 * Reads a checkpoint's manifest and checks size and SHA-256 of every file, and of the manifest itself if the caller knows its hash. Throws
 * CheckpointCorrupt, which names the file and the problem, or CheckpointUnknownFormat.
 */
export async function verifyCheckpoint(
  path: string,
  { manifestSha256 }: { manifestSha256?: string } = {},
): Promise<VerifiedCheckpoint> {
  const text = await readFile(join(path, 'manifest.json')).catch((error: NodeJS.ErrnoException) => {
    if (isDiskFault(error)) throw error;
    throw new CheckpointCorrupt(path, 'manifest.json', 'a readable file', error.code ?? error.message);
  });
  const found = createHash('sha256').update(text).digest('hex');
  if (manifestSha256 !== undefined && found !== manifestSha256) {
    throw new CheckpointCorrupt(path, 'manifest.json', `of SHA-256 ${manifestSha256}`, `of ${found}`);
  }
  const manifest = parseManifest(path, text.toString('utf8'));
  const files = Object.values(manifest.files);
  for (const file of files) await verifyFile(path, file);
  return {
    manifest,
    manifestSha256: found,
    sizeBytes: files.reduce((sum, file) => sum + file.sizeBytes, text.length),
  };
}

/** Path of one file of a checkpoint. */
export function checkpointFilePath(path: string, digest: FileDigest): string {
  return join(path, digest.fileName);
}

function parseManifest(path: string, text: string): CheckpointManifest {
  let manifest: Partial<CheckpointManifest> | null;
  try {
    manifest = JSON.parse(text) as Partial<CheckpointManifest> | null;
  } catch {
    throw new CheckpointCorrupt(path, 'manifest.json', 'JSON', `${text.length} characters that are not`);
  }
  if (typeof manifest?.formatVersion !== 'number') {
    throw new CheckpointCorrupt(path, 'manifest.json', 'a manifest with a formatVersion', 'without');
  }
  if (manifest.formatVersion !== checkpointFormatVersion) {
    throw new CheckpointUnknownFormat(path, checkpointFormatVersion, manifest.formatVersion);
  }
  for (const key of [
    'specSha256',
    'datasetSha256',
    'model',
    'phase',
    'progress',
    'position',
    'optimizerStepCounts',
    'backend',
    'files',
  ] as const) {
    if (manifest[key] === undefined)
      throw new CheckpointCorrupt(path, 'manifest.json', `a manifest with ${key}`, 'without');
  }
  for (const key of [
    'base',
    'shared',
    'moments',
    ...(manifest.adapter ? (['adapters', 'start'] as const) : []),
  ] as const) {
    if (manifest.files![key] === undefined) {
      throw new CheckpointCorrupt(path, 'manifest.json', `a manifest that names the file ${key}`, 'without');
    }
  }
  const adapter = manifest.adapter ? { ...laterDefaults.adapter, ...manifest.adapter } : null;
  const model = { ...laterDefaults.model, ...manifest.model! };
  // Before graphs could be chosen, all paths were separate.
  return { ...(manifest as CheckpointManifest), model, adapter, graphs: manifest.graphs ?? separateGraphs };
}

async function verifyFile(path: string, expected: FileDigest): Promise<void> {
  const { fileName, sizeBytes, sha256 } = expected;
  // The manifest may have been tampered with; the files of a checkpoint are never in subfolders.
  if (!/^[a-z]+\.safetensors$/.test(fileName)) {
    throw new CheckpointCorrupt(
      path,
      'manifest.json',
      'a manifest of plain file names',
      `naming ${JSON.stringify(fileName)}`,
    );
  }
  const filePath = join(path, fileName);
  const size = await stat(filePath).then(
    ({ size }) => size,
    (error: NodeJS.ErrnoException) => {
      if (isDiskFault(error)) throw error;
      throw new CheckpointCorrupt(path, fileName, 'a readable file', error.code ?? error.message);
    },
  );
  if (size !== sizeBytes)
    throw new CheckpointCorrupt(path, fileName, `${sizeBytes} bytes long`, `${size} bytes long`);
  const found = await digestFile(filePath);
  if (found.sha256 !== sha256)
    throw new CheckpointCorrupt(path, fileName, `of SHA-256 ${sha256}`, `of ${found.sha256}`);
}
