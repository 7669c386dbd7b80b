import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import {
  beginRun,
  CheckpointCorrupt,
  CheckpointNoSpace,
  disposeRun,
  engineVersion,
  exportModel,
  runWeights,
  saveCheckpoint,
  specHash,
  tfjsVersion,
  trainLoop,
  type Device,
  type TrainingEvent,
  type TrainingRun,
} from '@relora/engine';
import { Dataset } from '@relora/engine/data';
import type { Execution } from '../../jobs/job.js';
import type { ExportFormat } from '@relora/engine/plan';
import type { TrainOrder } from '../messages.js';
import { deviceFor } from './device.js';
import type { ServerChannel, StopOrder } from './channel.js';
import { describeError } from './describeError.js';
import { publish } from './publish.js';
import { StepReports } from './stepReports.js';
import { nameOf } from '../../store/tenantIds.js';

/**
 * Trains one attempt of a job: from its newest good checkpoint, or from the beginning, to the exported artifact or the
 * server's order to stop. Whatever it reports is true on the disk by then.
 */
export async function train(order: TrainOrder, channel: ServerChannel): Promise<void> {
  const device = await deviceFor(order.device, order.spec.precision);
  // Every hash was checked when the data set was prepared; lengths are checked now, so a start does not read gigabytes.
  const datasets = await Promise.all(
    order.datasetFolders.map(async (folder) => await Dataset.open(folder, { verify: false })),
  );
  const run = await begin(order, device, datasets, channel);
  channel.listenForUpdates((update) => run.steering.add(update));
  /** Checkpoints that the server has a row for: one that a stop finds already saved is not reported again. */
  const known = new Set(order.checkpoints.map(({ path }) => path));
  if (order.origin !== null) known.add(order.origin.path);
  const steps = new StepReports(order.spec.everyStepEvent);
  const send = async (bodies: TrainingEvent[]): Promise<void> => {
    for (const body of bodies) await channel.report({ type: 'event', timeMs: Date.now(), body });
  };
  const reportEvent = async (body: TrainingEvent): Promise<void> => {
    if (body.kind === 'step') return await send(steps.take(body, performance.now()));
    if (body.kind === 'checkpoint') {
      if (known.has(body.path)) return;
      known.add(body.path);
    }
    await send([...steps.rest(performance.now()), body]);
  };
  let saved = 0;
  /** For an export of the present state: the run is whole at every event, and its bits do not change by a checkpoint. */
  const saveWhenAsked = async (): Promise<void> => {
    const ticket = channel.saveTicket;
    if (ticket === saved || channel.stop.aborted) return;
    saved = ticket;
    let problem: string | null = null;
    try {
      await reportEvent({ kind: 'checkpoint', ...(await saveCheckpoint(run)) });
    } catch (error) {
      // Nobody needs this checkpoint to continue: the run does.
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

    await send(steps.rest(performance.now()));
    if (channel.stop.aborted) {
      if ((channel.stop.reason as StopOrder).keep)
        await reportEvent({ kind: 'checkpoint', ...(await saveCheckpoint(run)) });
      return await channel.report({ type: 'finished', outcome: 'stopped' });
    }
    for (const format of order.spec.export.formats)
      if (!order.exportedFormats.includes(format)) await exportArtifact(order, run, format, channel);
    await channel.report({ type: 'finished', outcome: 'succeeded' });
  } catch (error) {
    await send(steps.rest(performance.now())); // what was taken before it
    throw error;
  } finally {
    disposeRun(run);
    device.close();
    for (const dataset of datasets) await dataset.close();
  }
}

/**
 * The run as the newest checkpoint left it whose bytes are those that were saved; without any as the job it was forked from
 * left it, or from its beginning.
 */
async function begin(
  order: TrainOrder,
  device: Device,
  datasets: readonly Dataset[],
  channel: ServerChannel,
): Promise<TrainingRun> {
  const { spec: askedFor, baseWeightsFolder, baseWeightsBeneath, jobFolder: runFolder, attempt } = order;
  const options = {
    spec: askedFor,
    baseWeightsFolder: baseWeightsFolder ?? undefined,
    baseWeightsBeneath,
    device,
    dataset: datasets[0]!,
    mixture: datasets,
    runFolder,
    attempt,
    steering: { updates: order.updates, doneMs: dutiesFrom(order.startTimeMs) },
  };
  for (const { path, manifestSha256 } of order.checkpoints) {
    try {
      return await beginRun({ ...options, checkpointPath: path, manifestSha256 });
    } catch (error) {
      if (!(error instanceof CheckpointCorrupt)) throw error;
      await channel.report({ type: 'checkpointCorrupt', path, problem: error.message });
    }
  }
  if (order.origin === null) return await beginRun(options);
  const { path, manifestSha256, spec: checkpointSpec } = order.origin;
  return await beginRun({ ...options, checkpointPath: path, manifestSha256, checkpointSpec });
}

const dutiesFrom = (startMs: number) => ({ evaluation: startMs, checkpoint: startMs, sample: startMs });

/** What has to be equal for the same bits, and the threads. */
function executionOf({ spec, device, data, graphs, baseWeightsSha256 }: TrainingRun): Execution {
  const { name, model, uuid, instructionSet, threadCount, precision, basePrecision, libraries } =
    device.description;
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
  };
}

/**
 * Seals the model in a format: files complete, synced and hashed under a temporary name, the folder renamed, then it is
 * reported to the server. The training is done and in a checkpoint: what cannot be exported fails as an artifact alone. A
 * full disk is another
 * matter, since the job can be resumed when there is room.
 */
async function exportArtifact(
  order: TrainOrder,
  run: TrainingRun,
  format: ExportFormat,
  channel: ServerChannel,
): Promise<void> {
  const { weightType: plainType, ggufType, shardBytesMax } = order.spec.export;
  const weightType = format === 'gguf' ? ggufType : plainType;
  const folder = join(order.jobFolder, 'artifacts');
  const id = `${artifactNames[format]}-${order.attempt}`;
  const temporary = join(folder, `.tmp-${order.attempt}-${randomBytes(4).toString('hex')}`);
  const { nextStep: step, restartCount } = run.progress;
  const cycle = run.model.adapterSettings === null ? null : restartCount + 1;
  const artifact = { id, format, weightType, step, cycle };
  await channel.report({ type: 'exporting', artifact });
  try {
    await mkdir(folder, { recursive: true });
    const source = await runWeights(run);
    const job = `jobs/${nameOf(order.jobId)}`;
    const { files, castErrorMax } = await exportModel(source, temporary, {
      format,
      weightType,
      shardBytesMax,
      job,
    });
    await publish(temporary, join(folder, id));
    const digests = files.map(({ fileName, sizeBytes, sha256 }) => ({ fileName, sizeBytes, sha256 }));
    await channel.report({ type: 'artifact', artifact: { ...artifact, castErrorMax, files: digests } });
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    const failure = describeError(error, 'TASK_ERROR', order.jobFolder);
    if (failure.reason === 'STORAGE_FULL') throw error;
    await channel.report({ type: 'exportFailed', artifact, failure });
  }
}

const artifactNames: Record<ExportFormat, string> = {
  huggingFace: 'merged-model',
  peft: 'adapter',
  gguf: 'gguf',
};
