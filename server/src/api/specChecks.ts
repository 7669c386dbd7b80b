import {
  countParameters,
  devicePrecisions,
  linearShapes,
  Schedule,
  servesHead,
  servesPrecision,
  type RunSpec,
} from '@relora/engine/plan';
import type { DeviceName } from '../jobs/jobDevices.js';
import { capitals } from './enums.js';
import type { FieldChecks } from './fieldChecks.js';
import { checkMasks, stepsInOnePass, trainedParts, type NamedDataset } from './mixtureSpec.js';

/** A run before its model is known. */
export type ModelessRun = Omit<RunSpec, 'model' | 'baseWeightsFolder' | 'baseWeightsName'>;

const tokensPerStepMax = 2 ** 24;

export function checkBatch(checks: FieldChecks, batch: RunSpec['batch']): void {
  const { sequenceLength, sequenceCount, microBatchSequenceCount: micro } = batch;
  if (sequenceLength * sequenceCount > tokensPerStepMax) {
    checks.add(
      'spec.batch.sequence_count',
      `at most ${tokensPerStepMax} tokens in a step`,
      sequenceLength * sequenceCount,
    );
  }
  const field = 'spec.batch.micro_batch_sequence_count';
  if (sequenceCount % micro !== 0) checks.add(field, `a divisor of sequence_count ${sequenceCount}`, micro);
}

/** Each process gets the same number of sequences of a batch, and all of them run on one kind of device. */
export function checkReplicas(
  checks: FieldChecks,
  {
    replicas,
    replicasMin,
    batch,
    device,
    acceptedDevices,
    streams,
    adapter,
    reductionType,
  }: Pick<
    RunSpec,
    | 'replicas'
    | 'replicasMin'
    | 'batch'
    | 'device'
    | 'acceptedDevices'
    | 'streams'
    | 'adapter'
    | 'reductionType'
  >,
): void {
  const field = 'spec.replicas';
  if (replicasMin > replicas) checks.add('spec.replicas_min', `at most replicas, ${replicas}`, replicasMin);
  if (replicas === 1 && reductionType !== 'float32')
    checks.add('spec.reduction_type', 'FLOAT32 with one process, which reduces nothing', 'BFLOAT16');
  if (replicas === 1 || checks.isWrong(field)) return;
  const { sequenceCount } = batch;
  if (!checks.isWrong('spec.batch') && sequenceCount % replicas !== 0)
    checks.add(field, `a divisor of batch.sequence_count ${sequenceCount}`, replicas);
  if (!checks.isWrong('spec.batch') && replicasMin > 0 && sequenceCount % replicasMin !== 0)
    checks.add('spec.replicas_min', `a divisor of batch.sequence_count ${sequenceCount}, or 0`, replicasMin);
  const others = acceptedDevices.filter((name) => name !== device);
  if (others.length > 0)
    checks.add(
      'spec.accepted_devices',
      `one kind of device for ${replicas} replicas`,
      [device, ...others].join(', '),
    );
  if (streams.dropout === 1 && (adapter?.dropout ?? 0) > 0)
    checks.add(field, '1 with streams.dropout 1, whose masks are drawn by micro-batch', replicas);
}

/**
 * Processes that train a cycle separately must begin the next one alike: their weights are averaged, so they must have a mean, and nothing
 * else may differ.
 */
export function checkSynchronization(
  checks: FieldChecks,
  {
    synchronization,
    replicas,
    kind,
    adapter,
    optimizer,
  }: Pick<RunSpec, 'synchronization' | 'replicas' | 'kind' | 'adapter' | 'optimizer'>,
): void {
  if (synchronization === 'everyStep') return;
  const field = 'spec.synchronization';
  if (replicas === 1 && !checks.isWrong('spec.replicas'))
    checks.add(field, 'EVERY_STEP with one process, which has nobody to agree with', 'EVERY_CYCLE');
  if (kind !== 'relora')
    checks.add(field, `EVERY_STEP for ${capitals(kind)}, which has no restarts`, 'EVERY_CYCLE');
  const beside = 'with synchronization EVERY_CYCLE';
  const { initialisation, momentReset, fullRankStepCount } = adapter ?? {};
  if (initialisation !== undefined && initialisation !== 'random')
    checks.add('spec.adapter.initialisation', `RANDOM ${beside}`, capitals(initialisation));
  if (momentReset !== undefined && momentReset !== 'zero')
    checks.add('spec.adapter.moment_reset', `ZERO ${beside}`, capitals(momentReset));
  if (fullRankStepCount !== undefined && fullRankStepCount > 0)
    checks.add('spec.adapter.full_rank_step_count', `0 ${beside}`, fullRankStepCount);
  if (optimizer.momentType !== 'float32')
    checks.add('spec.optimizer.moment_type', `FLOAT32 ${beside}`, capitals(optimizer.momentType));
}

/** Only a job with adapters has a frozen base, and each device that the job accepts must have the precision. */
export function checkPrecision(
  checks: FieldChecks,
  {
    precision,
    kind,
    device,
    acceptedDevices,
  }: Pick<RunSpec, 'precision' | 'kind' | 'device' | 'acceptedDevices'>,
  asked: string,
): void {
  const field = 'spec.precision';
  const got = asked.replace('PRECISION_', '');
  const isQuantized = precision === 'int8Base' || precision === 'nf4Base' || precision === 'fp8Base';
  if (isQuantized && kind === 'fullRank') {
    checks.add(
      field,
      'AUTO, FLOAT32 or BFLOAT16 for FULL_RANK, which trains every weight: it has no frozen base',
      got,
    );
    return;
  }
  const other = [device, ...acceptedDevices].find(
    (name) => name !== 'auto' && !servesPrecision(name, precision),
  );
  if (other !== undefined && other !== 'auto') checks.add(field, precisionsOf(other), got);
}

/** Only the processor has another precision for the head. */
export function checkHeadPrecision(
  checks: FieldChecks,
  { headPrecision, device, acceptedDevices }: Pick<RunSpec, 'headPrecision' | 'device' | 'acceptedDevices'>,
): void {
  const other = [device, ...acceptedDevices].find(
    (name) => name !== 'auto' && !servesHead(name, headPrecision),
  );
  if (other !== undefined) checks.add('spec.head_precision', `SAME on ${other}`, capitals(headPrecision));
}

export function precisionsOf(device: DeviceName): string {
  const [last, ...others] = devicePrecisions[device].map(capitals).reverse();
  return `${['AUTO', ...others.reverse()].join(', ')} or ${last} on ${device}${device === 'native' ? '; only cuda has FP8_BASE' : ''}`;
}

/** A PEFT export contains adapters, so the run must end with some. */
export function checkLastPhase(checks: FieldChecks, run: ModelessRun): void {
  if (!run.export.formats.includes('peft') || (run.adapter?.fullRankStepCount ?? 0) === 0) return;
  if (checks.isWrong('spec.step_count') || checks.isWrong('spec.adapter')) return;
  const schedule = new Schedule(run);
  if (schedule.phaseAt(schedule.stepCount - 1) !== 'fullRank') return;
  checks.add(
    'spec.export.formats',
    'PEFT for runs that end with adapters: a step_count beyond the full-rank steps of the last cycle',
    `PEFT for a run whose last step, ${schedule.stepCount - 1}, is one of them`,
  );
}

/** Each training part must be long enough for one sequence, and for all steps if nothing may be repeated. */
export function checkTrainingPart(
  checks: FieldChecks,
  run: ModelessRun,
  datasets: readonly NamedDataset[],
): void {
  if (checks.isWrong('spec.batch')) return;
  checkMasks(checks, datasets, run);
  for (const { dataset, tokenCount } of trainedParts(datasets)) {
    if (tokenCount > run.batch.sequenceLength) continue;
    checks.add(
      'spec.batch.sequence_length',
      `less than ${tokenCount}, the tokens in the training part of ${dataset}`,
      run.batch.sequenceLength,
    );
  }
  // A part shorter than one sequence is never read at all, however many steps there are.
  const isKnown =
    !checks.isWrong('spec.batch') && !checks.isWrong('spec.mixture') && trainedParts(datasets).length > 0;
  if (run.endOfData === 'stop' && isKnown) checkOnePass(checks, run, datasets);
}

export function checkModelSize(
  checks: FieldChecks,
  { kind, model }: Pick<RunSpec, 'kind' | 'model'>,
  parametersMax: number,
): void {
  if (checks.isWrong('spec.model')) return;
  const { model: parameterCount } = countParameters({ kind, adapter: null, model });
  if (parameterCount > parametersMax)
    checks.add('spec.model', `at most ${parametersMax} weights`, parameterCount);
}

/** Products of e4m3 read sixteen values at once: narrower layers would gain nothing, and a row's scale would cover too few values. */
const codedWidthMin = 16;

export function checkCodedWidths(
  checks: FieldChecks,
  { precision, model }: Pick<RunSpec, 'precision' | 'model'>,
): void {
  if (precision !== 'fp8Base' || checks.isWrong('spec.model') || checks.isWrong('spec.precision')) return;
  for (const [name, { inFeatures, outFeatures }] of Object.entries(linearShapes(model))) {
    if (Math.min(inFeatures, outFeatures) >= codedWidthMin) continue;
    const got = `${name} of ${inFeatures} x ${outFeatures}`;
    return checks.add('spec.precision', `layers of ${codedWidthMin} features or more with FP8_BASE`, got);
  }
}

/**
 * Refused instead of shortened: learning rate and restarts are planned over step_count, which must be known before the first step and is
 * the client's choice.
 */
function checkOnePass(
  checks: FieldChecks,
  run: Pick<RunSpec, 'batch' | 'stepCount' | 'warmStart' | 'seed'>,
  datasets: readonly NamedDataset[],
): void {
  if (checks.isWrong('spec.step_count') || checks.isWrong('spec.warm_start')) return;
  const { stepCount, warmStart } = run;
  const stepsInPass = stepsInOnePass(datasets, run);
  const stepCountMax = stepsInPass - warmStart.stepCount;
  if (stepCount <= stepCountMax) return;
  const before = warmStart.stepCount === 0 ? '' : ` after ${warmStart.stepCount} of the warm start`;
  const expected =
    stepCountMax < 1
      ? `fewer steps than fit: with end_of_data STOP one pass over the data has ${stepsInPass}${before}; take a smaller batch or warm start`
      : `at most ${stepCountMax}${before}: with end_of_data STOP one pass over the data has ${stepsInPass} steps`;
  checks.add('spec.step_count', expected, stepCount);
}
