import { join } from 'node:path';
import {
  capabilityMins,
  cardBytes,
  cardServes,
  cardShareBytes,
  decideRecomputation,
  datasetNames,
  estimateRun,
  exchangedBytes,
  largestKind,
  peakOnCard,
  readDatasetNames,
  Schedule,
  servesHead,
  servesPrecision,
  unmeasured,
  whatWouldFit,
  type DeviceSpeed,
  type RunSpec,
  taskMemoryBytes,
} from '@relora/engine/plan';
import * as contract from '@relora/sdk/contract';
import type { JobEstimate, JobPlan, JobSpec } from '@relora/sdk/contract';
import type { DatasetHead } from '../datasets/dataset.js';
import { settings, type Config } from '../config.js';
import { gibibytes, ServiceError } from '../errors.js';
import { freeMemoryBytes } from '../machineMemory.js';
import { namedWeights } from '../store/folders.js';
import { isOnCards, placesOn, type DeviceDescription } from '../jobs/jobDevices.js';
import { findBaseWeights, requireSoundFolder } from './baseWeights.js';
import { speedOf } from './deviceCatalog.js';
import { capitals, enums } from './enums.js';
import { evaluationsMax } from './evaluationSpec.js';
import { parseJobSpec } from './jobSpec.js';
import { deviceMemoryOf, machineShareBytes, withCardMicroBatch } from './deviceMemory.js';
import type { ApiParts } from './parts.js';
import { precisionsOf } from './specChecks.js';
import { datasetIdOf } from './resourceNames.js';
import type { Warning } from './specWarnings.js';
import { Turns } from './turns.js';
import type { Job } from '../jobs/job.js';
import { tenantOf } from '../store/tenantIds.js';

/** A job that may be created: its run, its cost and its plan. */
export interface AdmittedJob {
  spec: RunSpec;
  estimate: JobEstimate;
  plan: JobPlan;
  warnings: Warning[];
}

/** What is needed to check a specification and everything that it names. */
export type AdmitParts = Pick<
  ApiParts,
  | 'config'
  | 'store'
  | 'datasets'
  | 'allowedFolders'
  | 'devices'
  | 'slots'
  | 'weights'
  | 'artifacts'
  | 'stage'
  | 'tasks'
  | 'stopping'
>;

const learningRatePoints = 200;
/** Keeps a plan short enough for an answer. */
const restartStepsMax = 10_000;

/** Checks a specification and everything that it names; throws a ServiceError. Nothing is stored. */
export async function admitJob(
  parts: AdmitParts,
  tenant: string,
  spec: JobSpec | undefined,
  { whenTooLarge }: { whenTooLarge: 'refuse' | 'warn' },
): Promise<AdmittedJob> {
  const { config } = parts;
  const found = await findDatasets(parts, tenant, spec);
  const baseWeights =
    spec?.model?.baseWeights === undefined
      ? null
      : await findBaseWeights(parts, tenant, spec.model.baseWeights);
  const turns = new Turns(); // long plans take milliseconds in each of these steps
  const parsed = parseJobSpec(spec, { dataset: undefined, mixture: found, baseWeights }, config);
  await turns.next();
  if (parsed.spec === null) {
    // If nothing else is wrong, a missing data set gets an error code of its own, which a client can act on.
    const missing = spec === undefined ? [] : readDatasetNames(spec).filter((name) => !found.has(name));
    const datasetId = datasetIdOf(tenant, missing[0] ?? '');
    if (datasetId !== undefined && parsed.problems.length === 1)
      throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
    throw new ServiceError('JOB_SPEC_INVALID', { problems: parsed.problems });
  }
  for (const { id, state, prepared } of found.values())
    if (prepared === null)
      throw new ServiceError('DATASET_NOT_READY', { datasetId: id, state: state.toUpperCase() });
  const warnings = [...parsed.warnings];
  const sound = await withSoundWeights(parts, tenant, parsed.spec, warnings);
  const device = await chooseDevice(parts, sound);
  requirePlaces(parts, sound, device);
  if (device !== undefined) requirePrecisions(device.backend, sound);
  const speed = device === undefined ? unknownSpeed : speedOf(device);
  const memory = deviceMemoryOf(device, speed, config);
  const isOpen = device?.backend === 'cuda' && spec?.batch?.microBatchSequenceCount === undefined;
  const wanted = isOpen ? withCardMicroBatch(sound, memory) : sound;
  const { peakOf, bytesMax: memoryBytesMax } = memory;
  const decided = decideRecomputation(wanted, peakOf, memoryBytesMax);
  await turns.next();
  const peakMemoryBytes = Math.round(peakOf(decided));
  if (decided !== wanted) {
    warnings.push({
      reason: 'RECOMPUTATION_NEEDED',
      message: `Blocks are computed again in the backward pass: without, the job would need more of ${memory.name} than ${gibibytes(memoryBytesMax)}, which a job may have here`,
    });
  }
  if (peakMemoryBytes > memoryBytesMax) {
    const fits = whatWouldFit(decided, peakOf, memoryBytesMax, device?.backend);
    const refusal = new ServiceError('JOB_TOO_LARGE', {
      ...{ peakMemoryBytes, memoryBytesMax, fits, memory: memory.name },
    });
    if (whenTooLarge === 'refuse') throw refusal;
    warnings.push({ reason: 'MEMORY_ABOVE_LIMIT', message: refusal.message });
  } else if (device?.backend !== 'cuda' && peakMemoryBytes > freeMemoryBytes() && (await isIdle(parts))) {
    warnings.push({
      reason: 'MEMORY_SCARCE',
      message: `The job would need ${gibibytes(peakMemoryBytes)} of memory at its peak; ${gibibytes(freeMemoryBytes())} are free at this moment, and no job of this server holds the rest`,
    });
  }
  const tooLarge = device?.backend === 'cuda' ? tasksTooLarge(decided, config) : null;
  if (tooLarge !== null) warnings.push(tooLarge);
  await turns.next();
  const estimate = toEstimate(decided, found, device, parts);
  for (const warning of costlySigns(decided, estimate)) warnings.push(warning);
  await turns.next();
  return { spec: decided, estimate, plan: toPlan(new Schedule(decided)), warnings };
}

/** The data sets that a specification names, by name, without those that do not exist. */
async function findDatasets(
  { datasets, config }: Pick<ApiParts, 'datasets' | 'config'>,
  tenant: string,
  spec: Pick<JobSpec, 'dataset' | 'mixture' | 'evaluations'> | undefined,
): Promise<Map<string, DatasetHead>> {
  const found = new Map<string, DatasetHead>();
  const namesMax = config.mixtureDatasetsMax + evaluationsMax;
  for (const name of spec === undefined ? [] : readDatasetNames(spec).slice(0, namesMax)) {
    const id = datasetIdOf(tenant, name);
    const head = id === undefined ? undefined : await datasets.findHead(id);
    if (head === undefined) continue;
    if (head.deleteTimeMs !== null) throw new ServiceError('DATASET_DELETED', { datasetId: head.id });
    found.set(name, head);
  }
  return found;
}

/**
 * Checks a folder that the client named. For our own weights only the head is checked, and only if the config says that it is the
 * embedding: whether that is true is not known before. The run warns about a difference.
 */
async function withSoundWeights(
  parts: AdmitParts,
  tenant: string,
  spec: RunSpec,
  warnings: Warning[],
): Promise<RunSpec> {
  const { baseWeightsFolder: folder, baseWeightsName: name, model } = spec;
  if (folder === null || (name !== null && !model.tieWordEmbeddings)) return spec;
  const own = namedWeights(tenant, name);
  const release = own === null ? undefined : await parts.stage.take(own);
  const beneath = own === null ? parts.config.allowedFolders : null;
  const path = own === null ? folder : join(parts.config.dataFolder, own);
  const report = await requireSoundFolder(parts, path, beneath).finally(release);
  for (const warning of report.warnings ?? []) warnings.push(warning as Warning);
  return { ...spec, model: { ...model, tieWordEmbeddings: report.config.tieWordEmbeddings } };
}

async function isIdle({ store }: Pick<ApiParts, 'store'>): Promise<boolean> {
  const { starting, running } = await store.countByState();
  return starting + running === 0;
}

/** The cost and plan of a job that was admitted earlier, even if it might not be admitted any more. */
export async function costOf(
  parts: Pick<ApiParts, 'config' | 'datasets' | 'devices' | 'slots'>,
  { id, spec }: Pick<Job, 'id' | 'spec'>,
): Promise<Pick<AdmittedJob, 'estimate' | 'plan'>> {
  const found = new Map<string, DatasetHead>();
  for (const name of datasetNames(spec)) {
    const head = await parts.datasets.findHead(datasetIdOf(tenantOf(id), name) ?? '');
    if (head !== undefined) found.set(name, head);
  }
  const device = findDevice(await parts.devices.list(), spec, parts);
  return {
    estimate: toEstimate(spec, found, device, parts),
    plan: toPlan(new Schedule(spec)),
  };
}

/** Checks the precisions on the device that will be used, whether the client chose it or `auto` did. */
function requirePrecisions(
  backend: DeviceDescription['backend'],
  { precision, headPrecision }: RunSpec,
): void {
  const problems = [];
  if (!servesPrecision(backend, precision)) {
    const expected = precisionsOf(backend);
    problems.push({ field: 'spec.precision', expected, got: capitals(precision) });
  }
  if (!servesHead(backend, headPrecision)) {
    const expected = `SAME on ${backend}`;
    problems.push({ field: 'spec.head_precision', expected, got: capitals(headPrecision) });
  }
  if (problems.length > 0) throw new ServiceError('JOB_SPEC_INVALID', { problems });
}

/** Refuses a precision for which every card that the job could run on is too old. */
function requireNewerCard(
  cards: readonly DeviceDescription[],
  { device, acceptedDevices, precision }: RunSpec,
): void {
  const isForCards = [device, ...acceptedDevices].some((name) => name === 'auto' || isOnCards(name));
  if (!isForCards || cards.length === 0 || cards.some((card) => cardServes(card, precision))) return;
  const name = capitals(precision);
  const kinds = cards.map(
    (card) => `${card.model} (compute capability ${card.computeCapability}, ${card.instructionSet})`,
  );
  throw new ServiceError('JOB_SPEC_INVALID', {
    problems: [
      {
        field: 'spec.precision',
        expected: `BFLOAT16, or a card of compute capability ${capabilityMins[precision]} or newer for ${name}`,
        got: `${name} with ${[...new Set(kinds)].join(', ')}`,
      },
    ],
  });
}

/** The device that the job will run on; undefined while devices could not be measured. */
async function chooseDevice(
  parts: Pick<ApiParts, 'devices' | 'slots'>,
  spec: RunSpec,
): Promise<DeviceDescription | undefined> {
  const devices = await parts.devices.list();
  const own = findDevice(devices, spec, parts);
  const isElsewhere =
    devices.length > 0 && (own === undefined || !servesPrecision(own.backend, spec.precision));
  const elsewhere = isElsewhere ? await parts.devices.elsewhere() : [];
  const found = own ?? findDevice(elsewhere, spec, parts);
  requireNewerCard(
    [...devices, ...elsewhere].filter(({ backend }) => isOnCards(backend)),
    spec,
  );
  if (found === undefined && devices.length > 0) {
    const problem = parts.devices.problems().find(({ backend }) => backend === spec.device);
    throw new ServiceError('DEVICE_UNAVAILABLE', {
      device: spec.device,
      available: [...new Set(devices.map(({ backend }) => backend))].join(', '),
      problem: problem?.message ?? '',
    });
  }
  return found;
}

/** Refuses a job with more processes than there are places for, unless other servers of the store may have them. */
function requirePlaces(
  { config, slots }: Pick<ApiParts, 'config' | 'slots'>,
  { replicas, device: asked, precision }: RunSpec,
  device: DeviceDescription | undefined,
): void {
  const backend = device?.backend ?? asked;
  // While the cards were not looked for, it is not known how many there are.
  if (replicas === 1 || config.databaseUrl !== null || (device === undefined && isOnCards(asked))) return;
  const { count } = placesOn(backend, slots, precision);
  if (replicas <= count) return;
  const expected = isOnCards(backend)
    ? `at most ${count} on cuda, the cards of this server${capabilityMins[precision] !== undefined ? ` that serve ${capitals(precision)}` : ''}, of which each process takes one`
    : `at most ${count}, the slots of this server (${settings.slots.variable}), which its processes take at once`;
  throw new ServiceError('JOB_SPEC_INVALID', {
    problems: [{ field: 'spec.replicas', expected, got: String(replicas) }],
  });
}

/** The first device that the job may run on; of several cards the largest, or the smallest of those that its processes need. */
function findDevice(
  devices: readonly DeviceDescription[],
  spec: RunSpec,
  { slots }: Pick<ApiParts, 'slots'>,
): DeviceDescription | undefined {
  const wanted = spec.device === 'auto' ? [slots.resolve(spec)] : [spec.device, ...spec.acceptedDevices];
  const byMemory = devices
    .filter((device) => !isOnCards(device.backend) || cardServes(device, spec.precision))
    .sort((one, other) => other.memoryBytes - one.memoryBytes);
  return wanted.flatMap((name) => {
    const ofBackend = byMemory.filter(({ backend }) => backend === name);
    const alike = spec.replicas > 1 ? largestKind(ofBackend) : ofBackend;
    return alike[Math.min(spec.replicas, alike.length) - 1] ?? [];
  })[0];
}

/** A speed that means "duration unknown", while devices could not be measured; memory is estimated all the same. */
const unknownSpeed: DeviceSpeed = unmeasured({
  ...{ name: 'native', instructionSet: 'avx512', threadCount: 1, precision: 'float32' },
});

function toEstimate(
  spec: RunSpec,
  datasets: ReadonlyMap<string, DatasetHead>,
  device: DeviceDescription | undefined,
  { config, devices }: Pick<ApiParts, 'config' | 'devices'>,
): JobEstimate {
  const tokensOf = (name: string) => datasets.get(name)?.prepared?.train.tokenCount ?? 0;
  const trained = spec.mixture.length === 0 ? [spec] : spec.mixture.filter(({ weight }) => weight > 0);
  const trainTokens = trained.reduce((sum, { dataset }) => sum + tokensOf(dataset), 0);
  const reached = device && devices.reachedOn(device);
  const measured = device === undefined ? unknownSpeed : speedOf(device);
  const estimate = estimateRun(spec, reached?.basis ?? measured);
  const isCard = device?.backend === 'cuda';
  const onCard = isCard ? peakOnCard(spec, measured) : undefined;
  const peakMemoryPhase = onCard === undefined ? estimate.peakMemoryPhase : onCard.phase;
  // 0 means unknown.
  const seconds = (ratio: number | undefined): number => {
    const duration = estimate.durationSeconds * (ratio ?? 0);
    return device !== undefined && Number.isFinite(duration) ? duration : 0;
  };
  return {
    parameterCount: estimate.parameterCount,
    trainableParameterCount: estimate.trainableParameterCount,
    peakMemoryBytes: Math.round(estimate.peakMemoryBytes),
    flopsPerToken: estimate.flopsPerToken,
    fullRankFlopsPerToken: estimate.fullRankFlopsPerToken,
    tokenCount: estimate.tokenCount,
    durationSeconds: seconds(reached?.ratio ?? 1),
    durationLowSeconds: seconds(reached?.lowRatio),
    durationHighSeconds: seconds(reached?.highRatio),
    // Estimates from the speed of earlier jobs do not depend on the load during the measurement.
    measuredLoadRatio: device === undefined || reached !== undefined ? 0 : devices.loadRatio,
    diskBytes: Math.round(estimate.diskBytes),
    memoryLimitBytes: machineShareBytes(config),
    peakMemoryPhase:
      peakMemoryPhase === null ? contract.JobPhase.UNSPECIFIED : enums.JobPhase.to[peakMemoryPhase],
    signCosts: estimate.signRatios.map(({ phase, ratio }) => ({
      phase: enums.JobPhase.to[phase],
      stepRatio: ratio,
    })),
    cardMemoryBytes: onCard === undefined ? 0 : Math.round(cardBytes(onCard.parts)),
    cardMemoryLimitBytes: isCard ? cardShareBytes(device.memoryBytes, config.gpuSlots) : 0,
    exchangedBytesPerStep: spec.replicas > 1 ? exchangedBytes(spec, 'adapter') : 0,
    epochCount: trainTokens > 0 ? estimate.tokenCount / trainTokens : 0,
  };
}

/** Warns where the signs of an update at least double a step. */
function costlySigns({ batch }: RunSpec, { signCosts }: JobEstimate): Warning[] {
  const tokens = batch.sequenceCount * batch.sequenceLength;
  return signCosts
    .filter(({ stepRatio }) => stepRatio >= 1)
    .map(({ phase, stepRatio }) => {
      const optimizer = phase === contract.JobPhase.ADAPTER ? 'LORA_MUON' : 'MUON';
      return {
        reason: 'OPTIMIZER_COSTLY',
        message: `An update by ${optimizer} takes ${stepRatio.toFixed(1)} times as long as the rest of a step of ${tokens} tokens in the phase ${phase.replace('JOB_PHASE_', '')}: more tokens a step, or ADAMW`,
      };
    });
}

/** While a trainer has its card, tasks run on the processors and need as much memory there as the trainer on the card. */
function tasksTooLarge(spec: RunSpec, config: Config): Warning | null {
  const [neededBytes, allowedBytes] = [taskMemoryBytes(spec), machineShareBytes(config)];
  if (neededBytes <= allowedBytes) return null;
  const message = `Exports, texts and scores of the model run on the processors and would need ${gibibytes(neededBytes)} of memory; ${gibibytes(allowedBytes)} are allowed here (${settings.jobMemoryBytesMax.variable})`;
  return { reason: 'TASKS_TOO_LARGE', message };
}

function toPlan(schedule: Schedule): JobPlan {
  const points = Math.min(learningRatePoints, schedule.stepCount);
  const distance = points === 1 ? 0 : (schedule.stepCount - 1) / (points - 1);
  const spread = Array.from({ length: points }, (_, index) => Math.round(index * distance));
  // Where points are too sparse to draw every dip after a restart, the few that happen to fall into one would look like the only dips.
  const warmupStepsMax = distance > 1 ? 4 * distance : 0;
  const steps = new Set(spread.map((step) => schedule.afterRestartWarmup(step, warmupStepsMax)));
  return {
    stepCount: schedule.stepCount,
    warmStartStepCount: schedule.warmStartStepCount,
    restartSteps: schedule.restartSteps(restartStepsMax),
    restartCount: schedule.restartCount,
    learningRates: Array.from(steps, (step) => ({ step, learningRate: schedule.learningRateAt(step) })),
  };
}
