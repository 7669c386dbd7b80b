import { totalmem } from 'node:os';
import { join } from 'node:path';
import { estimateRun, Schedule, type DeviceSpeed, type Estimate, type RunSpec } from '@relora/engine/plan';
import type { JobEstimate, JobPlan, JobSpec } from '@relora/sdk/contract';
import type { Dataset } from '../datasets/dataset.js';
import { ServiceError } from '../errors.js';
import type { DeviceDescription } from '../trainer/messages.js';
import { parseJobSpec } from './jobSpec.js';
import type { FoundBaseWeights } from './modelSpec.js';
import type { ApiParts } from './parts.js';
import { readServerFile } from './readServerFile.js';
import { datasetIdOf } from './resourceNames.js';
import type { Warning } from './specWarnings.js';

/** A job that may be created: its run, what it will cost and when things will happen. */
export interface AdmittedJob {
  spec: RunSpec;
  estimate: JobEstimate;
  plan: JobPlan;
  warnings: Warning[];
}

/** Longest config.json that is read. */
const configBytesMax = 1 << 20;
const learningRatePoints = 200;

/** Checks a specification with all that it names; throws a ServiceError. Nothing is stored. */
export async function admitJob(
  parts: Pick<ApiParts, 'config' | 'datasets' | 'allowedFolders' | 'devices'>,
  spec: JobSpec | undefined,
): Promise<AdmittedJob> {
  const { config } = parts;
  const datasetId = datasetIdOf(spec?.dataset ?? '');
  const dataset = datasetId === undefined ? undefined : await parts.datasets.find(datasetId);
  const baseWeights =
    spec?.model?.baseWeights === undefined ? null : await findBaseWeights(parts, spec.model.baseWeights.path);
  const parsed = parseJobSpec(spec, { dataset, baseWeights }, config);
  if (parsed.spec === null) {
    // With nothing else wrong, a missing data set has a code of its own, which a client can act on.
    if (datasetId !== undefined && dataset === undefined && parsed.problems.length === 1)
      throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
    throw new ServiceError('JOB_SPEC_INVALID', { problems: parsed.problems });
  }
  if (dataset === undefined || dataset.prepared === null) {
    throw new ServiceError('DATASET_NOT_READY', {
      datasetId: datasetId!,
      state: (dataset?.state ?? 'missing').toUpperCase(),
    });
  }
  const device = chooseDevice(await parts.devices.list(), parsed.spec);
  const estimate = estimateRun(parsed.spec, speedOf(device, parsed.spec));
  const memoryBytesMax = config.jobMemoryBytesMax || machineMemoryBytes();
  if (estimate.peakMemoryBytes > memoryBytesMax) {
    const fits = whatFits(parsed.spec, speedOf(device, parsed.spec), memoryBytesMax);
    throw new ServiceError('JOB_TOO_LARGE', {
      peakMemoryBytes: Math.round(estimate.peakMemoryBytes),
      memoryBytesMax,
      fits,
    });
  }
  return {
    spec: parsed.spec,
    estimate: toEstimate(estimate, dataset, device),
    plan: toPlan(new Schedule(parsed.spec)),
    warnings: parsed.warnings,
  };
}

/** What a job that was admitted earlier costs and when things happen in it, though it might not be admitted any more. */
export async function costOf(
  parts: Pick<ApiParts, 'datasets' | 'devices'>,
  spec: RunSpec,
): Promise<Pick<AdmittedJob, 'estimate' | 'plan'>> {
  const dataset = await parts.datasets.find(datasetIdOf(spec.dataset) ?? '');
  const device = findDevice(await parts.devices.list(), spec);
  return {
    estimate: toEstimate(estimateRun(spec, speedOf(device, spec)), dataset, device),
    plan: toPlan(new Schedule(spec)),
  };
}

/** Memory that trainers may use: that of the machine, or of the container. */
export function machineMemoryBytes(): number {
  const constrained = process.constrainedMemory?.() ?? 0;
  return constrained > 0 && constrained < totalmem() ? constrained : totalmem();
}

/** The largest micro-batch with which the job would fit: it changes memory and time, and the result only by rounding. */
function whatFits(spec: RunSpec, speed: DeviceSpeed, memoryBytesMax: number): string {
  for (let count = spec.batch.microBatchSequenceCount - 1; count >= 1; count--) {
    if (spec.batch.sequenceCount % count !== 0) continue;
    const smaller = { ...spec, batch: { ...spec.batch, microBatchSequenceCount: count } };
    if (estimateRun(smaller, speed).peakMemoryBytes <= memoryBytesMax)
      return `with micro_batch_sequence_count ${count} it would fit`;
  }
  return 'the model is too large for it with any micro-batch';
}

/** The device that the job will run on; undefined while devices could not be measured. */
function chooseDevice(devices: readonly DeviceDescription[], spec: RunSpec): DeviceDescription | undefined {
  const found = findDevice(devices, spec);
  if (found === undefined && devices.length > 0) {
    throw new ServiceError('DEVICE_UNAVAILABLE', {
      device: spec.device,
      available: devices.map(({ backend }) => backend).join(', '),
    });
  }
  return found;
}

function findDevice(devices: readonly DeviceDescription[], spec: RunSpec): DeviceDescription | undefined {
  if (spec.device === 'auto') return devices.find(({ isDefault }) => isDefault) ?? devices[0];
  return devices.find(({ backend }) => backend === spec.device);
}

function speedOf(device: DeviceDescription | undefined, spec: RunSpec): DeviceSpeed {
  const precision = spec.precision === 'auto' ? (device?.autoPrecision ?? 'float32') : spec.precision;
  return precision === 'bfloat16'
    ? { flopsPerSecond: device?.bfloat16Flops || device?.float32Flops || 0, packedBytes: 2 }
    : { flopsPerSecond: device?.float32Flops ?? 0, packedBytes: 4 };
}

function toEstimate(
  estimate: Estimate,
  dataset: Dataset | undefined,
  device: DeviceDescription | undefined,
): JobEstimate {
  const trainTokens = dataset?.prepared?.train.tokenCount ?? 0;
  return {
    parameterCount: estimate.parameterCount,
    trainableParameterCount: estimate.trainableParameterCount,
    peakMemoryBytes: Math.round(estimate.peakMemoryBytes),
    flopsPerToken: estimate.flopsPerToken,
    fullRankFlopsPerToken: estimate.fullRankFlopsPerToken,
    tokenCount: estimate.tokenCount,
    // 0 says that it is not known.
    durationSeconds:
      device !== undefined && Number.isFinite(estimate.durationSeconds) ? estimate.durationSeconds : 0,
    diskBytes: Math.round(estimate.diskBytes),
    epochCount: trainTokens > 0 ? estimate.tokenCount / trainTokens : 0,
  };
}

function toPlan(schedule: Schedule): JobPlan {
  const points = Math.min(learningRatePoints, schedule.stepCount);
  const steps = Array.from({ length: points }, (_, index) =>
    points === 1 ? 0 : Math.round((index * (schedule.stepCount - 1)) / (points - 1)),
  );
  return {
    stepCount: schedule.stepCount,
    warmStartStepCount: schedule.warmStartStepCount,
    restartSteps: schedule.restartSteps(),
    learningRates: steps.map((step) => ({ step, learningRate: schedule.learningRateAt(step) })),
  };
}

/** Folder and config.json of weights to continue from. The weights themselves are read by the trainer, never here. */
async function findBaseWeights(
  parts: Pick<ApiParts, 'allowedFolders'>,
  path: string,
): Promise<FoundBaseWeights> {
  const folder = await parts.allowedFolders.folder(path);
  if ('problem' in folder) return folder;
  const read = await readServerFile(parts.allowedFolders, join(folder.path, 'config.json'), configBytesMax);
  if ('problem' in read) return { problem: `config.json: ${read.problem}` };
  try {
    const config: unknown = JSON.parse(read.text);
    if (typeof config !== 'object' || config === null || Array.isArray(config))
      return { problem: 'config.json holds no object' };
    return { folder: folder.path, config: config as Record<string, unknown> };
  } catch {
    return { problem: 'config.json is not JSON' };
  }
}
