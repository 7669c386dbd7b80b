import { isDeepStrictEqual } from 'node:util';
import { countParameters, Schedule, sequencesInPass } from '@relora/engine/plan';
import type {
  AdapterSettings,
  BatchSettings,
  LearningRateSettings,
  LlamaConfig,
  OptimizerSettings,
  Precision,
  RunSpec,
  StepRange,
} from '@relora/engine/plan';
import type { BatchSpec, JobSpec, LearningRateSpec, OptimizerSpec } from '@relora/sdk/contract';
import type { Dataset } from '../datasets/dataset.js';
import { quote, type FieldProblem } from '../errors.js';
import { checkGraph, parseAdapter } from './adapterSpec.js';
import {
  deviceChoices,
  endsOfData,
  jobKinds,
  momentTypes,
  precisions,
  recomputations,
  scheduleKinds,
} from './enums.js';
import { parseExportSpec } from './exportSpec.js';
import { FieldChecks } from './fieldChecks.js';
import { parseModelSpec, type FoundBaseWeights, type ModelLimits } from './modelSpec.js';
import { parseRecipe, recipes, withRecipe } from './recipes.js';
import { datasetIdOf } from './resourceNames.js';
import { needsWarmStart, warningsOf, type Warning } from './specWarnings.js';

/** What a specification may ask for; from the settings. */
export interface Limits extends ModelLimits {
  rankMax: number;
  stepsMax: number;
}

/** What a specification names, as it was found. */
export interface Surroundings {
  dataset: Dataset | undefined;
  /** Null when the specification names none. */
  baseWeights: FoundBaseWeights | null;
}

/** Either a run or what is wrong; warnings come only with a run. */
export type ParsedJobSpec =
  | { spec: RunSpec; problems: []; warnings: Warning[] }
  | { spec: null; problems: FieldProblem[]; warnings: [] };

/** Tokens in a micro-batch when the client does not say. */
const microBatchTokens = 2048;
const tokensPerStepMax = 2 ** 24;
const seedMax = 2 ** 31 - 1;

/** Turns a JobSpec into a RunSpec with every default of job.proto filled in, or finds everything that is wrong with it. */
export function parseJobSpec(
  asked: JobSpec | undefined,
  { dataset, baseWeights }: Surroundings,
  limits: Limits,
): ParsedJobSpec {
  const checks = new FieldChecks();
  if (asked === undefined)
    return { spec: null, problems: [{ field: 'spec', expected: 'a JobSpec', got: 'none' }], warnings: [] };
  const kind = checks.choice('spec.kind', asked.kind, jobKinds, 'RELORA, LORA or FULL_RANK') ?? 'relora';
  const hasAdapter = kind !== 'fullRank';

  if (datasetIdOf(asked.dataset) === undefined)
    checks.add('spec.dataset', 'datasets/{dataset}', quote(asked.dataset));
  else if (dataset === undefined) checks.add('spec.dataset', 'a data set that exists', quote(asked.dataset));
  const prepared = dataset?.prepared ?? null;
  const source = parseModelSpec(
    checks,
    asked.model,
    baseWeights,
    prepared?.tokenizer.vocabularySize ?? null,
    limits,
  );

  const batch = parseBatch(checks, asked.batch, source?.model, limits);
  const stepCount = parseStepCount(checks, asked, batch, limits);
  const recipe = parseRecipe(checks, asked);
  const spec = withRecipe(recipe, asked, stepCount);

  if (!hasAdapter && spec.adapter !== undefined)
    checks.add('spec.adapter', 'nothing for FULL_RANK', 'an AdapterSpec');
  const adapter = hasAdapter
    ? parseAdapter(checks, spec.adapter, kind, stepCount, source?.model, {
        rankMax: limits.rankMax,
        alphaOverRank: recipes[recipe]!.alphaOverRank,
      })
    : null;
  const warmStart = parseWarmStart(checks, spec, adapter, stepCount, limits);
  if (warmStart.stepCount + stepCount > limits.stepsMax) {
    checks.add(
      'spec.step_count',
      `at most ${limits.stepsMax} steps with those of the warm start`,
      warmStart.stepCount + stepCount,
    );
  }
  const cycleStepCount = adapter?.cycleStepCount ?? stepCount;
  const stepCountOfAll = warmStart.stepCount + stepCount;

  const device =
    checks.choice(
      'spec.device',
      spec.device ?? 'auto',
      deviceChoices,
      'auto, native, tensorflow or reference',
    ) ?? 'auto';
  const precision = parsePrecision(checks, spec, kind, device);
  if (adapter !== null) checkGraph(checks, adapter, precision);

  const run: Omit<RunSpec, 'model' | 'baseWeightsFolder' | 'baseWeightsName'> = {
    kind,
    dataset: spec.dataset,
    warmStart,
    adapter,
    stepCount,
    omittedSteps: parseOmittedSteps(checks, spec, stepCountOfAll),
    recipe,
    learningRate: parseLearningRate(checks, spec.learningRate, kind, cycleStepCount),
    optimizer: parseOptimizer(checks, spec.optimizer, limits),
    batch,
    precision,
    recomputation:
      checks.choice('spec.recomputation', spec.recomputation, recomputations, 'AUTO, NONE or BLOCKS') ??
      'auto',
    endOfData: checks.choice('spec.end_of_data', spec.endOfData, endsOfData, 'REPEAT or STOP') ?? 'repeat',
    seed: checks.integer('spec.seed', spec.seed, 0, 0, seedMax),
    evaluation: {
      everyStepCount: checks.integer(
        'spec.evaluation.every_step_count',
        spec.evaluation?.everyStepCount,
        tenthOf(stepCountOfAll),
        0,
        limits.stepsMax,
      ),
      tokenCount: checks.integer(
        'spec.evaluation.token_count',
        spec.evaluation?.tokenCount,
        65_536,
        1,
        2 ** 40,
      ),
      finalTokenCount: checks.integer(
        'spec.evaluation.final_token_count',
        spec.evaluation?.finalTokenCount,
        prepared?.heldOut.tokenCount ?? 0,
        0,
        2 ** 40,
      ),
    },
    checkpoint: {
      everyStepCount: checks.integer(
        'spec.checkpoint.every_step_count',
        spec.checkpoint?.everyStepCount,
        Math.min(1000, tenthOf(stepCountOfAll)),
        1,
        limits.stepsMax,
      ),
      keepCount: checks.integer('spec.checkpoint.keep_count', spec.checkpoint?.keepCount, 2, 2, 1000),
    },
    sample: {
      everyStepCount: checks.integer(
        'spec.sample.every_step_count',
        spec.sample?.everyStepCount,
        0,
        0,
        limits.stepsMax,
      ),
      prompt: checks.text('spec.sample.prompt', spec.sample?.prompt ?? '', 4096, { lines: true }),
      tokenCount: checks.integer('spec.sample.token_count', spec.sample?.tokenCount, 64, 1, 4096),
    },
    export: parseExportSpec(checks, kind, spec.export),
    priority: checks.integer('spec.priority', spec.priority, 0, -100, 100),
    device,
  };

  if (
    run.export.formats.includes('peft') &&
    (adapter?.fullRankStepCount ?? 0) > 0 &&
    !checks.isWrong('spec.step_count') &&
    !checks.isWrong('spec.adapter')
  ) {
    const schedule = new Schedule(run);
    if (schedule.phaseAt(schedule.stepCount - 1) === 'fullRank') {
      checks.add(
        'spec.export.formats',
        'PEFT for runs that end with adapters: a step_count beyond the full-rank steps of the last cycle',
        `PEFT for a run whose last step, ${schedule.stepCount - 1}, is one of them`,
      );
    }
  }
  if (
    prepared !== null &&
    !checks.isWrong('spec.batch') &&
    prepared.train.tokenCount <= run.batch.sequenceLength
  ) {
    checks.add(
      'spec.batch.sequence_length',
      `less than ${prepared.train.tokenCount}, the tokens in the training part of ${spec.dataset}`,
      run.batch.sequenceLength,
    );
  }
  if (prepared !== null && run.endOfData === 'stop' && !checks.isWrong('spec.batch'))
    checkOnePass(checks, run, prepared.train.tokenCount);
  if (source !== undefined && !checks.isWrong('spec.model')) {
    const { model: parameterCount } = countParameters({ kind, adapter: null, model: source.model });
    if (parameterCount > limits.parametersMax)
      checks.add('spec.model', `at most ${limits.parametersMax} weights`, parameterCount);
  }
  if (source === undefined || checks.problems.length > 0)
    return { spec: null, problems: checks.problems, warnings: [] };
  const complete: RunSpec = { ...run, ...source };
  return { spec: complete, problems: [], warnings: warningsOf(complete, prepared) };
}

/** The steps of the main phase, which may be asked for as tokens. */
function parseStepCount(
  checks: FieldChecks,
  { stepCount, tokenCount }: JobSpec,
  { sequenceCount, sequenceLength }: BatchSettings,
  { stepsMax }: Limits,
): number {
  if (stepCount !== undefined && tokenCount !== undefined) {
    checks.add('spec.token_count', 'exactly one of step_count and token_count', 'both');
  } else if (tokenCount !== undefined) {
    const tokensPerStep = sequenceCount * sequenceLength;
    const most = Math.min(Number.MAX_SAFE_INTEGER, stepsMax * tokensPerStep);
    return Math.ceil(checks.integer('spec.token_count', tokenCount, tokensPerStep, 1, most) / tokensPerStep);
  } else if (stepCount === undefined) {
    checks.add('spec.step_count', `a whole number from 1 to ${stepsMax}, or token_count`, 'none');
  }
  return checks.integer('spec.step_count', stepCount, 1, 1, stepsMax);
}

/** By the present name or that of 0.1.0; a specification that a server gave has both. */
function parseOmittedSteps(
  checks: FieldChecks,
  { omittedSteps, skippedSteps }: JobSpec,
  stepCount: number,
): StepRange[] {
  const isOld = omittedSteps.length === 0 && skippedSteps.length > 0;
  const field = isOld ? 'spec.skipped_steps' : 'spec.omitted_steps';
  const ranges = isOld ? skippedSteps : omittedSteps;
  if (skippedSteps.length > 0 && !isDeepStrictEqual(skippedSteps, ranges))
    checks.add('spec.skipped_steps', 'nothing, or the same as omitted_steps, its new name', 'others');
  if (ranges.length > 1000) checks.add(field, 'at most 1000 ranges', ranges.length);
  let next = 0;
  return ranges.slice(0, 1000).map(({ first, last }, index) => {
    const name = `${field}[${index}]`;
    const begin = checks.integer(`${name}.first`, first, next, next, stepCount - 1);
    const end = checks.integer(`${name}.last`, last, begin, begin, stepCount - 1);
    next = end + 1;
    return { first: begin, last: end };
  });
}

/**
 * Refused rather than cut short: learning rate and restarts are laid out over step_count, which must be known before the
 * first step and is the client's to choose.
 */
function checkOnePass(
  checks: FieldChecks,
  { batch, stepCount, warmStart }: Pick<RunSpec, 'batch' | 'stepCount' | 'warmStart'>,
  tokenCount: number,
): void {
  if (checks.isWrong('spec.step_count') || checks.isWrong('spec.warm_start')) return;
  const stepsInPass = Math.floor(sequencesInPass(tokenCount, batch.sequenceLength) / batch.sequenceCount);
  const stepCountMax = stepsInPass - warmStart.stepCount;
  if (stepCount <= stepCountMax) return;
  const before = warmStart.stepCount === 0 ? '' : ` after ${warmStart.stepCount} of the warm start`;
  const expected =
    stepCountMax < 1
      ? `fewer steps than fit: with end_of_data STOP one pass over the data has ${stepsInPass}${before}; take a smaller batch or warm start`
      : `at most ${stepCountMax}${before}: with end_of_data STOP one pass over the data has ${stepsInPass} steps`;
  checks.add('spec.step_count', expected, stepCount);
}

function parseWarmStart(
  checks: FieldChecks,
  spec: JobSpec,
  adapter: AdapterSettings | null,
  stepCount: number,
  limits: Limits,
): RunSpec['warmStart'] {
  const hasAdapter = adapter !== null;
  if (!hasAdapter && spec.warmStart !== undefined)
    checks.add('spec.warm_start', 'nothing for FULL_RANK', 'a WarmStartSpec');
  // Base weights are past what a warm start is for.
  const isWanted = hasAdapter && spec.model?.baseWeights === undefined && needsWarmStart(adapter);
  const fallback = isWanted ? Math.floor(stepCount / 4) : 0;
  const { warmStart } = spec;
  const steps = checks.integer(
    'spec.warm_start.step_count',
    warmStart?.stepCount,
    fallback,
    0,
    limits.stepsMax,
  );
  return {
    stepCount: hasAdapter ? steps : 0,
    learningRate: checks.number('spec.warm_start.learning_rate', warmStart?.learningRate, 5e-4, {
      min: 0,
      max: 1,
      above: true,
    }),
    warmupStepCount: checks.integer(
      'spec.warm_start.warmup_step_count',
      warmStart?.warmupStepCount,
      Math.floor(steps / 10),
      0,
      steps,
    ),
  };
}

function parseLearningRate(
  checks: FieldChecks,
  spec: LearningRateSpec | undefined,
  kind: RunSpec['kind'],
  cycleStepCount: number,
): LearningRateSettings {
  const schedule = checks.choice(
    'spec.learning_rate.schedule',
    spec?.schedule ?? 'SCHEDULE_KIND_UNSPECIFIED',
    scheduleKinds,
    'JAGGED_COSINE, COSINE, LINEAR or CONSTANT',
  );
  return {
    peak: checks.number('spec.learning_rate.peak', spec?.peak, kind === 'fullRank' ? 5e-4 : 1e-3, {
      min: 0,
      max: 1,
      above: true,
    }),
    schedule: schedule ?? (kind === 'relora' ? 'jaggedCosine' : 'cosine'),
    warmupStepCount: checks.integer(
      'spec.learning_rate.warmup_step_count',
      spec?.warmupStepCount,
      Math.floor(cycleStepCount / 20),
      0,
      cycleStepCount,
    ),
    minRatio: checks.number('spec.learning_rate.min_ratio', spec?.minRatio, 0.1, {
      min: 0,
      max: 1,
      above: true,
    }),
  };
}

function parseOptimizer(
  checks: FieldChecks,
  spec: OptimizerSpec | undefined,
  limits: Limits,
): OptimizerSettings {
  return {
    beta1: checks.number('spec.optimizer.beta1', spec?.beta1, 0.9, {
      min: 0,
      max: 1,
      below: true,
    }),
    beta2: checks.number('spec.optimizer.beta2', spec?.beta2, 0.999, {
      min: 0,
      max: 1,
      below: true,
    }),
    epsilon: checks.number('spec.optimizer.epsilon', spec?.epsilon, 1e-8, {
      min: 0,
      max: 1,
      above: true,
    }),
    weightDecay: checks.number('spec.optimizer.weight_decay', spec?.weightDecay, 0, {
      min: 0,
      max: 10,
    }),
    gradientNormMax: checks.number('spec.optimizer.gradient_norm_max', spec?.gradientNormMax, 1, {
      min: 0,
      max: 1e6,
      above: true,
    }),
    nonfiniteStepCountMax: checks.integer(
      'spec.optimizer.nonfinite_step_count_max',
      spec?.nonfiniteStepCountMax,
      0,
      0,
      limits.stepsMax,
    ),
    momentType:
      checks.choice(
        'spec.optimizer.moment_type',
        spec?.momentType ?? 'MOMENT_TYPE_FLOAT32',
        momentTypes,
        'FLOAT32 or INT8',
      ) ?? 'float32',
  };
}

/** A frozen base there is only beside adapters, and products in anything but float32 only on the native backend. */
function parsePrecision(
  checks: FieldChecks,
  spec: JobSpec,
  kind: RunSpec['kind'],
  device: RunSpec['device'],
): Precision {
  const field = 'spec.precision';
  const precision =
    checks.choice(field, spec.precision, precisions, 'AUTO, FLOAT32, BFLOAT16, INT8_BASE or NF4_BASE') ??
    'auto';
  const got = spec.precision.replace('PRECISION_', '');
  if ((precision === 'int8Base' || precision === 'nf4Base') && kind === 'fullRank') {
    checks.add(
      field,
      'AUTO, FLOAT32 or BFLOAT16 for FULL_RANK, which trains every weight: it has no frozen base',
      got,
    );
  } else if (
    precision !== 'auto' &&
    precision !== 'float32' &&
    (device === 'reference' || device === 'tensorflow')
  ) {
    checks.add(field, `AUTO or FLOAT32 on ${device}; only native has others`, got);
  }
  return precision;
}

function parseBatch(
  checks: FieldChecks,
  spec: BatchSpec | undefined,
  model: LlamaConfig | undefined,
  limits: Limits,
): BatchSettings {
  const longest = Math.min(limits.sequenceLengthMax, model?.maxPositionEmbeddings ?? Infinity);
  const sequenceLength = checks.integer(
    'spec.batch.sequence_length',
    spec?.sequenceLength,
    Math.min(512, longest),
    2,
    longest,
  );
  const sequenceCount = checks.integer('spec.batch.sequence_count', spec?.sequenceCount, 16, 1, 65_536);
  if (sequenceLength * sequenceCount > tokensPerStepMax) {
    checks.add(
      'spec.batch.sequence_count',
      `at most ${tokensPerStepMax} tokens in a step`,
      sequenceLength * sequenceCount,
    );
  }
  const field = 'spec.batch.micro_batch_sequence_count';
  const micro = checks.integer(
    field,
    spec?.microBatchSequenceCount,
    defaultMicroBatch(sequenceLength, sequenceCount),
    1,
    sequenceCount,
  );
  if (sequenceCount % micro !== 0) checks.add(field, `a divisor of sequence_count ${sequenceCount}`, micro);
  return { sequenceLength, sequenceCount, microBatchSequenceCount: micro };
}

/** As many sequences as keep 2048 tokens at once and divide the batch; at least one. */
function defaultMicroBatch(sequenceLength: number, sequenceCount: number): number {
  let micro = Math.max(1, Math.min(sequenceCount, Math.floor(microBatchTokens / sequenceLength)));
  while (sequenceCount % micro !== 0) micro--;
  return micro;
}

function tenthOf(stepCount: number): number {
  return Math.max(1, Math.floor(stepCount / 10));
}
