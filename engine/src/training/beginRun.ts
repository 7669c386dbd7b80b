import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { Collective } from '../device/collective.js';
import type { Device, DeviceDescription } from '../device/device.js';
import type { Dataset } from '../data/dataset.js';
import { encodeAlike } from '../data/encodeAlike.js';
import { idleSequenceShare } from '../data/idleSequences.js';
import { unknownTextOf } from '../data/lostText.js';
import { TrainingData } from '../data/trainingData.js';
import { checkpointFilePath, verifyCheckpoint, type CheckpointManifest } from './checkpointManifest.js';
import { restoreModel, withMoments } from './checkpointModel.js';
import { digestFile, type FileDigest } from '../io/durableFile.js';
import { isDiskFault } from '../io/diskFault.js';
import { loadModelFolder } from '../model/modelFolder.js';
import { specHash } from '../plan/specHash.js';
import { adapterPlan } from '../model/adapterSet.js';
import { weightsSha256 } from '../model/weightsHash.js';
import { Llama } from '../model/llama.js';
import { chooseGraphs, type LayerGraphs } from '../plan/adapterGraphs.js';
import type { LlamaConfig, RunSpec } from '../plan/runSpec.js';
import type { SteeringOptions } from './steering.js';
import { scoredSets, type ScoredSet } from './scoredSets.js';
import { reserveMemory } from './reserveMemory.js';
import { BaseWeightsChanged, RunMismatch } from './trainingErrors.js';
import { emptyDocuments } from './documentLosses.js';
import { emptyRecord } from './earlyStop.js';
import {
  assembleRun,
  disposeRun,
  type RunProgress,
  type StoredFile,
  type TrainingRun,
} from './trainingRun.js';

export interface BeginRunOptions {
  spec: RunSpec;
  /** Folders that links among the base weights' files must not lead out of; by default the files are our own and not checked. */
  baseWeightsBeneath?: readonly string[] | null;
  device: Device;
  /** Default: a single process. */
  collective?: Collective;
  /** The first one of a mixture. */
  dataset: Dataset;
  /** The data sets of a mixture, in the order of the specification. */
  mixture?: readonly Dataset[] | undefined;
  /** Data sets for evaluation, by name. */
  scoredDatasets?: ReadonlyMap<string, Dataset>;
  /** Where the base weights are now, if not where the specification says. */
  baseWeightsFolder?: string | undefined;
  /** State of the base weights before this attempt; a new run refuses to start from different ones. */
  baseWeightsBefore?: BaseWeightsBefore | undefined;
  /** Contains this run's `checkpoints/` and `start/`; created if missing. */
  runFolder: string;
  /** Checkpoint to resume from; without one the run starts at step 0. */
  checkpointPath?: string;
  /** The specification that the checkpoint was trained with, if this run continues with another one. */
  checkpointSpec?: RunSpec;
  /** SHA-256 of the checkpoint's manifest when it was saved. */
  manifestSha256?: string;
  /** From 1. */
  attempt: number;
  /** Changes of the run, and the times of its duties for when no checkpoint has them. */
  steering?: SteeringOptions;
}

export interface BaseWeightsBefore {
  /** The files as registered; empty for weights given by path, which have no digests. */
  files: readonly FileDigest[];
  /** As an earlier attempt recorded it. */
  sha256: string | null;
}

/**
 * Prepares a run for `trainLoop`: a new one, from base weights in Hugging Face layout, or one that resumes from a checkpoint and then
 * repeats the uninterrupted run bit for bit. Throws RunMismatch, BaseWeightsChanged, CheckpointCorrupt or a ModelFolderError, and then
 * frees everything. The caller disposes the run.
 */
export async function beginRun(options: BeginRunOptions): Promise<TrainingRun> {
  const { spec, dataset, runFolder, checkpointPath } = options;
  if (spec.model.vocabSize < dataset.tokenizer.vocabularySize) {
    const needed = `at least ${dataset.tokenizer.vocabularySize}, as the data set's tokenizer has`;
    throw new RunMismatch('model.vocabSize', needed, `${spec.model.vocabSize}`);
  }
  for (const [index, other] of (options.mixture ?? []).entries()) {
    const [wanted, found] = [dataset, other].map(({ manifest }) => manifest.tokenizer.sha256);
    if (wanted !== found)
      throw new RunMismatch(
        `The tokenizer of ${spec.mixture[index]?.dataset}`,
        `that of ${spec.dataset}, SHA-256 ${wanted}`,
        found!,
      );
  }
  const scored = await scoredSets(spec, dataset, options.scoredDatasets ?? new Map());
  reserveMemory(spec, options.device);
  await mkdir(runFolder, { recursive: true });
  if (checkpointPath !== undefined) return await resumeRun({ ...options, scored }, checkpointPath);
  const run = await startRun({ ...options, scored });
  await warnOfIdleSequences(run);
  warnOfUnknownText(run);
  return run;
}

type ScoredOptions = BeginRunOptions & { scored: readonly ScoredSet[] };

async function startRun(options: ScoredOptions): Promise<TrainingRun> {
  const { spec, dataset, device, baseWeightsFolder = spec.baseWeightsFolder } = options;
  const graphs = chooseGraphs(spec, device.description);
  if (baseWeightsFolder === null)
    return assembleRun({
      ...options,
      graphs,
      model: Llama.create(device, spec.model, spec.seed),
      baseWeightsSha256: null,
    });
  const { files = [], sha256: before = null } = options.baseWeightsBefore ?? {};
  for (const file of files) await requireUnchanged(join(baseWeightsFolder, file.fileName), file);
  const { model, tokenizer, modelFiles, warnings } = await loadModelFolder(device, baseWeightsFolder, {
    beneath: options.baseWeightsBeneath,
    isTied: spec.model.tieWordEmbeddings,
  });
  const difference = differingKey(spec.model, model.config);
  if (difference !== null) {
    const found = JSON.stringify(model.config[difference]);
    model.dispose();
    throw new RunMismatch(
      `model.${difference} of ${baseWeightsFolder}`,
      JSON.stringify(spec.model[difference]),
      found,
    );
  }
  const baseWeightsSha256 = await weightsSha256(model);
  if (before !== null && baseWeightsSha256 !== before) {
    model.dispose();
    throw new BaseWeightsChanged(baseWeightsFolder, `SHA-256 ${before}`, baseWeightsSha256);
  }
  const isAlike = tokenizer === null || (await encodeAlike(tokenizer, dataset.tokenizer));
  const run = assembleRun({
    ...options,
    graphs,
    model,
    baseWeightsSha256,
    modelFiles: isAlike ? modelFiles : {}, // they name tokens that the data set does not have
  });
  for (const warning of warnings) run.warnings.push(warning);
  if (!isAlike) {
    run.warnings.push({
      reason: 'TOKENIZER_DIFFERS',
      message: `The tokenizer.json of ${baseWeightsFolder} gives other ids than the data set's tokenizer: the weights have learned them otherwise, and what the folder says about chats and ends of texts is left out of exports`,
    });
  } else if (tokenizer !== null && tokenizer.endOfTextId !== dataset.tokenizer.endOfTextId) {
    run.warnings.push({
      reason: 'END_OF_TEXT_DIFFERS',
      message: `Texts of the data set end with the token ${dataset.tokenizer.endOfTextId}, those of ${baseWeightsFolder} with ${tokenizer.endOfTextId}: exports name the former`,
    });
  }
  return run;
}

/** Compares a file with its recorded digest; a missing or unreadable file counts as changed. */
async function requireUnchanged(path: string, before: FileDigest): Promise<void> {
  const found = await digestFile(path).catch((error: NodeJS.ErrnoException) => error);
  if (found instanceof Error) {
    if (isDiskFault(found)) throw found;
    throw new BaseWeightsChanged(path, 'a readable file', found.code ?? found.message);
  }
  if (found.sizeBytes !== before.sizeBytes)
    throw new BaseWeightsChanged(path, `${before.sizeBytes} bytes`, `${found.sizeBytes}`);
  if (found.sha256 !== before.sha256)
    throw new BaseWeightsChanged(path, `SHA-256 ${before.sha256}`, found.sha256);
}

/** Warns of sequences without anything to learn, which cost as much as others. */
async function warnOfIdleSequences({ data, spec, warnings }: TrainingRun): Promise<void> {
  const { sequenceLength } = spec.batch;
  for (const { dataset, source } of data.parts) {
    if (source.manifest.train.trained === undefined) continue;
    const share = await idleSequenceShare(source.train, sequenceLength);
    if (share < idleShareMin) continue;
    const of = data.parts.length === 1 ? '' : ` of ${dataset}`;
    warnings.push({
      reason: 'SEQUENCES_IDLE',
      message: `${Math.round(100 * share)} % of the sequences${of} of ${sequenceLength} tokens have nothing to learn, since their prompts are longer: take a longer sequence_length, or shorter prompts`,
    });
  }
}

const idleShareMin = 0.01;

/** Warns of text that the tokenizer cannot represent, which is not learned. */
function warnOfUnknownText({ data, warnings }: TrainingRun): void {
  for (const { dataset, source } of data.parts) {
    const text = unknownTextOf(source.manifest);
    if (text === null) continue;
    const of = data.parts.length === 1 ? '' : `${dataset}: `;
    warnings.push({ reason: 'TEXT_UNKNOWN', message: `${of}${text}` });
  }
}

async function resumeRun(options: ScoredOptions, checkpointPath: string): Promise<TrainingRun> {
  const { spec, device, dataset, mixture = [dataset] } = options;
  const { manifest, manifestSha256, sizeBytes } = await verifyCheckpoint(checkpointPath, options);
  const { baseWeightsSha256 = null } = manifest;
  const hash = specHash(options.checkpointSpec ?? spec, baseWeightsSha256);
  if (manifest.specSha256 !== hash) {
    throw new RunMismatch(
      `The specification that ${checkpointPath} was trained with`,
      `SHA-256 ${hash}`,
      manifest.specSha256,
    );
  }
  const dataSha256 = new TrainingData(spec, mixture).sha256;
  if (manifest.datasetSha256 !== dataSha256) {
    throw new RunMismatch(
      `The data that ${checkpointPath} was trained on`,
      `SHA-256 ${dataSha256}`,
      manifest.datasetSha256,
    );
  }
  const graphs = resumedGraphs(options, manifest);
  const model = await restoreModel(device, checkpointPath, manifest, adapterPlan(graphs, options.runFolder));
  const { modelFiles } = manifest;
  const progress = progressOf(manifest);
  // Resumed from another job: its best checkpoint does not belong to this one, and patience starts from 0.
  if (options.checkpointSpec !== undefined) Object.assign(progress, { heldOut: emptyRecord, namedSteps: {} });
  const steering = {
    ...options.steering,
    updateNumber: progress.updateNumber,
    laterUpdates: progress.laterUpdates,
    doneMs: { ...options.steering?.doneMs, ...manifest.doneMs },
    isResumed: true,
  };
  const run = assembleRun({ ...options, graphs, model, baseWeightsSha256, modelFiles, steering });
  Object.assign(run.progress, progress);
  try {
    await withMoments(checkpointPath, manifest, (read) =>
      run.optimizer.restore(model.parameters.values(), manifest.optimizerStepCounts, read),
    );
  } catch (error) {
    disposeRun(run);
    throw error;
  }
  run.savedProgress = progress;
  run.lastSaved = {
    step: manifest.progress.nextStep,
    path: checkpointPath,
    sizeBytes,
    manifestSha256,
    seconds: 0,
  };
  if (manifest.adapter !== null) run.frozen.base = stored(checkpointPath, manifest.files.base);
  if (manifest.files.start !== undefined) run.frozen.start = stored(checkpointPath, manifest.files.start);
  warnOfOtherBackend(run, manifest, device.description);
  const { replicas: before = 1 } = manifest;
  const { size } = run.collective;
  if (size !== before)
    run.warnings.push({
      reason: 'RESUMED_WITH_OTHER_REPLICAS',
      message: `The checkpoint was computed by ${before === 1 ? 'one process' : `${before} processes`} and the run resumes with ${size}: its losses will differ in the last digits`,
    });
  return run;
}

/**
 * Bits depend on the graphs, so a run keeps those of its checkpoint. One that continues another job with a precision or graph of its own
 * chooses again, since a quantized base must be packed once a cycle; its own checkpoints then have that choice.
 */
function resumedGraphs(
  { spec, checkpointSpec: before = spec, device }: ScoredOptions,
  { graphs }: CheckpointManifest,
): LayerGraphs {
  const isSame = before.precision === spec.precision && before.adapter?.graph === spec.adapter?.graph;
  return isSame ? graphs : chooseGraphs(spec, device.description);
}

/** Adds what manifests of earlier versions lack. */
function progressOf({ progress }: CheckpointManifest): RunProgress {
  const { evaluatedStep: wholeStep } = progress;
  const later = {
    updateNumber: 0,
    laterUpdates: [],
    wholeStep,
    namedSteps: {},
    heldOut: emptyRecord,
    documents: emptyDocuments,
  };
  return { ...later, ...progress };
}

/**
 * Floating-point sums depend on the kernels, and on a card also on the library versions: the run continues correctly, but not with the same
 * bits.
 */
function warnOfOtherBackend(
  run: TrainingRun,
  { backend: before }: CheckpointManifest,
  now: DeviceDescription,
): void {
  const describe = (backend: Omit<CheckpointManifest['backend'], 'cpuModel'>, model: string) => {
    const { name, instructionSet, precision, basePrecision = precision, libraries = {} } = backend;
    const base = basePrecision === precision ? null : `with a base in ${basePrecision}`;
    const onCard = Object.entries(libraries).map(([library, version]) => `${library} ${version}`);
    const card = name === 'cuda' ? `(${[model, ...onCard].join(', ')})` : null;
    return [name, instructionSet, precision, base, card].filter((part) => part !== null).join(' ');
  };
  const libraries = now.name === 'cuda' ? now.libraries : {};
  const [wanted, found] = [describe(before, before.cpuModel), describe({ ...now, libraries }, now.model)];
  if (wanted === found) return;
  run.warnings.push({
    reason: 'RESUMED_ON_OTHER_BACKEND',
    message: `The checkpoint was computed on ${wanted} and the run resumes on ${found}: its losses will differ in the last digits`,
  });
}

function differingKey(wanted: LlamaConfig, found: LlamaConfig): keyof LlamaConfig | null {
  return (
    (Object.keys(wanted) as (keyof LlamaConfig)[]).find(
      (key) => !isDeepStrictEqual(wanted[key], found[key]),
    ) ?? null
  );
}

function stored(path: string, digest: CheckpointManifest['files']['base']): StoredFile {
  return { ...digest, path: checkpointFilePath(path, digest) };
}
