import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import {
  beginRun,
  CheckpointCorrupt,
  CheckpointNoSpace,
  disposeRun,
  engineVersion,
  exportModel,
  measureExport,
  runWeights,
  saveCheckpoint,
  specHash,
  tfjsVersion,
  trainLoop,
  withCheckpointWeights,
  type Collective,
  type Device,
  type TrainingEvent,
  type TrainingRun,
  type WeightSource,
} from '@relora/engine';
import type { Dataset } from '@relora/engine/data';
import type { Execution } from '../../jobs/job.js';
import { isDiskFault } from '@relora/engine/files';
import type { ExportFormat } from '@relora/engine/plan';
import type { TrainOrder } from '../messages.js';
import { deviceFor } from './device.js';
import type { ServerChannel, StopOrder } from './channel.js';
import { collectiveOf, follow, kindOf, type Beginning } from './follow.js';
import { describeError } from './describeError.js';
import { openDatasets, runOptions } from './openRun.js';
import { publish } from './publish.js';
import { StepReports } from './stepReports.js';
import { nameOf } from '../../store/tenantIds.js';

/**
 * Trains one attempt of a job: from its newest good checkpoint, or from the beginning, to the exported artifacts or the server's order to
 * stop. Whatever it reports is already on the disk.
 */
export async function train(order: TrainOrder, channel: ServerChannel): Promise<void> {
  const device = await deviceFor(order.device, order.spec.precision);
  const collective = await collectiveOf(order, device);
  if (collective.rank > 0) return await follow(order, device, collective, channel);
  try {
    await lead(order, device, collective, channel);
  } finally {
    collective.leave();
  }
}

/** Runs the first of several ranks, or the only one: it reports the run to the server. */
async function lead(
  order: TrainOrder,
  device: Device,
  collective: Collective,
  channel: ServerChannel,
): Promise<void> {
  const datasets = await openDatasets(order);
  const run = await begin(order, device, collective, datasets, channel);
  const beginning = { manifestSha256: run.lastSaved?.manifestSha256 ?? null, kind: kindOf(device) };
  await collective.broadcast<Beginning>(beginning);
  channel.listenForUpdates((update) => run.steering.add(update));
  /** Checkpoints that the server has a row for, by path: if the run stops at one of them, it is not reported again. */
  const known = new Map(order.checkpoints.map((checkpoint) => [checkpoint.path, checkpoint]));
  if (order.origin !== null) known.set(order.origin.path, order.origin);
  const steps = new StepReports(order.spec.everyStepEvent);
  const send = async (bodies: TrainingEvent[]): Promise<void> => {
    for (const body of bodies) await channel.report({ type: 'event', timeMs: Date.now(), body });
  };
  const reportEvent = async (body: TrainingEvent): Promise<void> => {
    if (body.kind === 'step') return await send(steps.take(body, performance.now()));
    if (body.kind === 'checkpoint') {
      if (known.has(body.path)) return;
      known.set(body.path, body);
    }
    await send([...steps.rest(performance.now()), body]);
  };
  let saved = 0;
  /**
   * For an export of the current state: the state of the run is complete at every event, and saving a checkpoint does not change its bits.
   */
  const saveWhenAsked = async (): Promise<void> => {
    const ticket = channel.saveTicket;
    if (ticket === saved || channel.stop.aborted) return;
    saved = ticket;
    let problem: string | null = null;
    if (run.isApart) {
      problem = 'Its processes train by themselves, and hold the same weights only where a cycle ends';
      return await channel.report({ type: 'saved', ticket, problem });
    }
    try {
      await reportEvent({ kind: 'checkpoint', ...(await saveCheckpoint(run)) });
    } catch (error) {
      // The run continues without this checkpoint.
      if (!(error instanceof CheckpointNoSpace)) throw error;
      problem = error.message;
    }
    await channel.report({ type: 'saved', ticket, problem });
  };
  try {
    await channel.report({
      type: 'started',
      step: run.progress.nextStep,
      execution: executionOf(run),
    });
    for await (const event of trainLoop(run, channel.stop)) {
      await reportEvent(event);
      await saveWhenAsked();
    }

    // All ranks have ended the loop. What follows takes time, and with MPI the others would wait for this rank.
    if (order.member?.by === 'mpi') collective.leave(true);
    await send(steps.rest(performance.now()));
    if (channel.stop.aborted) {
      // While ranks train a cycle separately, the last usable checkpoint is from when they had the same weights.
      if ((channel.stop.reason as StopOrder).keep && !run.isApart)
        await reportEvent({ kind: 'checkpoint', ...(await saveCheckpoint(run)) });
      return await channel.report({ type: 'finished', outcome: 'stopped' });
    }
    // Exports need memory for merged weights and logits: the buffers of steps are freed first, so that exports need no more than steps did.
    device.trim();
    for (const format of order.spec.export.formats)
      if (!order.exportedFormats.includes(format))
        await exportArtifact(order, run, format, channel, bestOf(run, [...known.values()]));
    await channel.report({ type: 'finished', outcome: 'succeeded' });
  } catch (error) {
    await send(steps.rest(performance.now())); // steps from before the error
    throw error;
  } finally {
    disposeRun(run);
    device.close();
    for (const dataset of datasets) await dataset.close();
  }
}

/** A checkpoint whose digest is known. */
interface KnownCheckpoint {
  path: string;
  manifestSha256: string;
}

/**
 * The checkpoint with the lowest held-out loss, if its weights are to be exported; null if those of the run are, or if no evaluation has
 * determined a best one.
 */
function bestOf({ spec, progress }: TrainingRun, known: readonly KnownCheckpoint[]): BestCheckpoint | null {
  const { best } = progress.heldOut;
  if (spec.export.weights === 'last' || best === null || best.step === progress.nextStep) return null;
  const name = `step-${String(best.step).padStart(8, '0')}-`;
  return { step: best.step, checkpoint: known.findLast(({ path }) => basename(path).startsWith(name)) };
}

interface BestCheckpoint {
  step: number;
  /** Undefined if it could not be read. */
  checkpoint: KnownCheckpoint | undefined;
}

/** The run as its newest intact checkpoint left it; without one, as the job that it was forked from left it, or from its beginning. */
async function begin(
  order: TrainOrder,
  device: Device,
  collective: Collective,
  datasets: readonly Dataset[],
  channel: ServerChannel,
): Promise<TrainingRun> {
  const options = runOptions(order, device, collective, datasets);
  /** Checkpoints that the disk does not give. They count as corrupt only if there is another one to resume from. */
  const unreadable: { path: string; error: Error }[] = [];
  for (const { path, manifestSha256 } of order.checkpoints) {
    try {
      const run = await insistOnDisk(
        async () => await beginRun({ ...options, checkpointPath: path, manifestSha256 }),
      );
      for (const { path: before, error } of unreadable)
        await channel.report({ type: 'checkpointCorrupt', path: before, problem: error.message });
      return run;
    } catch (error) {
      if (error instanceof CheckpointCorrupt)
        await channel.report({ type: 'checkpointCorrupt', path, problem: error.message });
      else if (isDiskFault(error)) unreadable.push({ path, error: error as Error });
      else throw error;
    }
  }
  // Not from the beginning: the disk may give them to a later attempt.
  if (unreadable.length > 0) throw unreadable[0]!.error;
  if (order.origin === null) return await beginRun(options);
  const { path, manifestSha256, spec: checkpointSpec } = order.origin;
  return await beginRun({ ...options, checkpointPath: path, manifestSha256, checkpointSpec });
}

/** A disk that fails now and then gives at the next read what it holds. */
async function insistOnDisk<T>(act: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++)
    try {
      return await act();
    } catch (error) {
      if (!isDiskFault(error) || tries === diskTriesMax) throw error;
      await pause(1000);
    }
}

const diskTriesMax = 3;

/** What must be equal for the same bits, and the number of threads. */
function executionOf({ spec, device, collective, data, graphs, baseWeightsSha256 }: TrainingRun): Execution {
  const { name, model, uuid, instructionSet, threadCount, precision, basePrecision, libraries } =
    device.description;
  const { reductionType, synchronization } = spec;
  return {
    engineVersion,
    backend: name,
    instructionSet: instructionSet ?? '',
    threadCount,
    precision,
    datasetSha256: data.sha256,
    ...(data.parts.length > 1 && {
      datasets: data.parts.map(({ dataset, source }) => ({ dataset, sha256: source.manifestSha256 })),
    }),
    basePrecision,
    graphs: (spec.adapter?.targetModules ?? []).map((module) => ({ module, graph: graphs[module] })),
    baseWeightsSha256,
    specSha256: specHash(spec, baseWeightsSha256),
    nodeVersion: process.versions.node,
    tfjsVersion,
    deviceModel: model,
    cardUuid: uuid ?? '',
    libraries: Object.entries(libraries).map(([name, version]) => ({ name, version })),
    replicas: collective.size,
    ...(collective.size > 1 && { reductionType, synchronization }),
  };
}

/**
 * Seals the model in a format: the files are complete, synced and hashed under a temporary name, then the folder is renamed and reported to
 * the server. The training is done and in a checkpoint, so an export that fails is only a failed artifact. A full disk is different,
 * because the job can resume when there is space.
 */
async function exportArtifact(
  order: TrainOrder,
  run: TrainingRun,
  format: ExportFormat,
  channel: ServerChannel,
  best: BestCheckpoint | null,
): Promise<void> {
  const { weightType: plainType, ggufType, shardBytesMax } = order.spec.export;
  const weightType = format === 'gguf' ? ggufType : plainType;
  const folder = join(order.jobFolder, 'artifacts');
  const id = `${artifactNames[format]}-${order.attempt}`;
  const temporary = join(folder, `.tmp-${order.attempt}-${randomBytes(4).toString('hex')}`);
  const { nextStep, restartCount } = run.progress;
  const step = best?.step ?? nextStep;
  const cycle = run.model.adapterSettings === null ? null : restartCount + 1;
  const artifact = { id, format, weightType, step, cycle };
  await channel.report({ type: 'exporting', artifact });
  try {
    await mkdir(folder, { recursive: true });
    const job = `jobs/${nameOf(order.jobId)}`;
    const { files, castErrorMax, difference, lineage } = await withWeights(run, best, async (source) => ({
      ...(await exportModel(source, temporary, { format, weightType, shardBytesMax, job })),
      difference: await measure(order, run, source, temporary, { format, weightType }),
      lineage: source.lineage,
    }));
    await publish(temporary, join(folder, id));
    const digests = files.map(({ fileName, sizeBytes, sha256 }) => ({ fileName, sizeBytes, sha256 }));
    const measured = difference === null ? {} : { difference };
    const sealed = { ...artifact, cycle: lineage.cycle, castErrorMax, ...measured, files: digests };
    await channel.report({ type: 'artifact', artifact: sealed });
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    const failure = describeError(error, 'TASK_ERROR', order.jobFolder);
    // The disk is the cause, and not the format: the run resumes when possible.
    if (failure.reason === 'STORAGE_FULL' || failure.reason === 'STORAGE_BROKEN') throw error;
    await channel.report({ type: 'exportFailed', artifact, failure });
  }
}

/**
 * Compares the results of the written files with those of the weights that they were made from; on a processor, because a card's memory is
 * used by the run.
 */
async function measure(
  order: TrainOrder,
  run: TrainingRun,
  source: WeightSource,
  folder: string,
  what: Pick<Parameters<typeof exportModel>[2], 'format' | 'weightType'>,
) {
  const isCard = run.device.description.name === 'cuda';
  const device = isCard ? await deviceFor({ ...order.device, device: 'native' }, 'float32') : run.device;
  const { source: dataset } =
    run.data.parts.find(({ source: part }) => part.heldOut.tokenCount > 1) ?? run.data.parts[0]!;
  const check = { ...order.exportCheck, sequenceLength: run.spec.batch.sequenceLength };
  try {
    return await measureExport(device, source, folder, what, dataset, check);
  } finally {
    if (isCard) device.close();
  }
}

/** Calls `use` with the weights to export: those of the run, or of its best checkpoint. */
async function withWeights<T>(
  run: TrainingRun,
  best: BestCheckpoint | null,
  use: (source: WeightSource) => Promise<T>,
): Promise<T> {
  if (best === null) return await use(await runWeights(run));
  const { step, checkpoint } = best;
  const path = checkpoint?.path ?? join(run.folder, 'checkpoints');
  if (checkpoint === undefined)
    throw new CheckpointCorrupt(
      path,
      'manifest.json',
      `a checkpoint of step ${step}, the best`,
      'none that can be read',
    );
  const { manifestSha256 } = checkpoint;
  return await withCheckpointWeights(run.device, path, run.dataset, { manifestSha256 }, use);
}

const artifactNames: Record<ExportFormat, string> = {
  huggingFace: 'merged-model',
  peft: 'adapter',
  gguf: 'gguf',
};
