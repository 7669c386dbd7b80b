import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { Option, type Command } from 'commander';
import {
  AdapterGraph,
  AdapterOptimizer,
  AdapterScaling,
  EndOfData,
  ExportedWeights,
  FullRankOptimizer,
  Initialisation,
  JobKind,
  MomentType,
  parseJobSpec,
  Precision,
  HeadPrecision,
  ReductionType,
  Recomputation,
  Synchronization,
  TargetModule,
  TrainedFactors,
  type JobSpec,
  type MixturePart,
  type ModuleRank,
  type StepRange,
} from '@relora/sdk';
import { cadence, timeSpan } from './duration.js';
import { pathProblem, UsageError } from './exitCodes.js';

/** Flags for the most common settings; a file can contain all of them. */
type Cadence = ReturnType<typeof cadence>;

export interface SpecFlags {
  spec?: string;
  recipe?: string;
  kind?: string;
  preset?: string;
  baseWeights?: string;
  dataset?: string;
  mixture?: MixturePart[];
  steps?: number;
  tokens?: number;
  omitSteps?: StepRange[];
  /** Its name in 0.1.0. */
  skipSteps?: StepRange[];
  warmStart?: number;
  rank?: number;
  alpha?: number;
  cycle?: number;
  lr?: number;
  batch?: number;
  microBatch?: number;
  sequenceLength?: number;
  maskDocuments?: boolean;
  precision?: string;
  replicas?: number;
  replicasMin?: number;
  reduction?: string;
  synchronization?: string;
  headPrecision?: string;
  recomputation?: string;
  endOfData?: string;
  moments?: string;
  optimizer?: string;
  adapterOptimizer?: string;
  graph?: string;
  initialisation?: string;
  train?: string;
  cycleGrowth?: number;
  fullRankSteps?: number;
  moduleRank?: ModuleRank[];
  scaling?: string;
  bRateRatio?: number;
  seed?: number;
  evaluateEvery?: Cadence;
  evaluation?: NamedEvaluation[];
  checkpointEvery?: Cadence;
  sampleEvery?: Cadence;
  everyStep?: boolean;
  keepBest?: boolean;
  exportBest?: boolean;
  stopPatience?: number;
  stopImprovement?: number;
  stopLoss?: number;
  stopTokens?: number;
  stopAfter?: number;
  stopDeviceHours?: number;
}

const kinds = { relora: JobKind.RELORA, lora: JobKind.LORA, 'full-rank': JobKind.FULL_RANK } as const;
const precisions = {
  auto: Precision.AUTO,
  float32: Precision.FLOAT32,
  bfloat16: Precision.BFLOAT16,
  'int8-base': Precision.INT8_BASE,
  'nf4-base': Precision.NF4_BASE,
  'fp8-base': Precision.FP8_BASE,
} as const;
const headPrecisions = { same: HeadPrecision.SAME, int8: HeadPrecision.INT8 } as const;
const recomputations = {
  auto: Recomputation.AUTO,
  none: Recomputation.NONE,
  blocks: Recomputation.BLOCKS,
} as const;
const endsOfData = { repeat: EndOfData.REPEAT, stop: EndOfData.STOP } as const;
const reductionTypes = { float32: ReductionType.FLOAT32, bfloat16: ReductionType.BFLOAT16 } as const;
const synchronizations = {
  'every-step': Synchronization.EVERY_STEP,
  'every-cycle': Synchronization.EVERY_CYCLE,
} as const;
const momentTypes = { float32: MomentType.FLOAT32, int8: MomentType.INT8 } as const;
const fullRankOptimizers = {
  adamw: FullRankOptimizer.ADAMW,
  muon: FullRankOptimizer.MUON,
  'apollo-mini': FullRankOptimizer.APOLLO_MINI,
} as const;
const adapterOptimizers = {
  adamw: AdapterOptimizer.ADAMW,
  'lora-muon': AdapterOptimizer.LORA_MUON,
} as const;
const graphs = {
  auto: AdapterGraph.AUTO,
  separate: AdapterGraph.SEPARATE,
  merged: AdapterGraph.MERGED,
  'weight-gradient': AdapterGraph.WEIGHT_GRADIENT,
} as const;

const initialisations = {
  random: Initialisation.RANDOM,
  'gradient-svd': Initialisation.GRADIENT_SVD,
  'old-span': Initialisation.OLD_SPAN,
  'half-span': Initialisation.HALF_SPAN,
} as const;
const trainedFactors = { both: TrainedFactors.BOTH, 'b-only': TrainedFactors.B_ONLY } as const;
const scalings = {
  'alpha-over-rank': AdapterScaling.ALPHA_OVER_RANK,
  'alpha-over-sqrt-rank': AdapterScaling.ALPHA_OVER_SQRT_RANK,
} as const;
const modules = {
  q_proj: TargetModule.Q_PROJ,
  k_proj: TargetModule.K_PROJ,
  v_proj: TargetModule.V_PROJ,
  o_proj: TargetModule.O_PROJ,
  gate_proj: TargetModule.GATE_PROJ,
  up_proj: TargetModule.UP_PROJ,
  down_proj: TargetModule.DOWN_PROJ,
} as const;

export function addSpecOptions(command: Command): Command {
  return command
    .option('--spec <file>', 'JSON file with a JobSpec, - for standard input; flags override it')
    .option('--recipe <name>', 'set of defaults, for example gradient-svd; "relora info" lists the recipes')
    .option('--kind <kind>', `one of ${Object.keys(kinds).join(', ')}`)
    .option('--preset <name>', 'model, for example llama-60m; "relora info" lists the presets')
    .option(
      '--base-weights <name>',
      'weights to continue from: weights/…, jobs/…/artifacts/…, or a folder on the server',
    )
    .option('--dataset <name>', 'data set, datasets/…')
    .option(
      '--mixture <name=weight>',
      'data set of a mixture with its weight, by default 1; may be repeated',
      mixturePart,
    )
    .option('--steps <n>', 'steps of the main phase', wholeNumber)
    .option('--tokens <n>', 'tokens of the main phase, instead of --steps', wholeNumber)
    .option(
      '--omit-steps <first-last>',
      'steps whose batches are passed over, without an update; may be repeated',
      stepRange,
    )
    .addOption(new Option('--skip-steps <first-last>').argParser(stepRange).hideHelp())
    .option('--warm-start <n>', 'full-rank steps before the adapters', wholeNumber)
    .option('--rank <n>', 'rank of the adapters', wholeNumber)
    .option('--alpha <x>', 'the adapters are scaled by alpha / rank', decimalNumber)
    .option('--cycle <n>', 'steps between restarts', wholeNumber)
    .option('--lr <x>', 'highest learning rate of the main phase', decimalNumber)
    .option('--batch <n>', 'sequences in a step', wholeNumber)
    .option('--micro-batch <n>', 'sequences that are computed at the same time', wholeNumber)
    .option('--sequence-length <n>', 'tokens in a sequence', wholeNumber)
    .option('--mask-documents', 'attention does not cross from one document to another within a sequence')
    .option(
      '--replicas <n>',
      'number of processes that train together, each on a part of the batch',
      wholeNumber,
    )
    .option(
      '--replicas-min <n>',
      'smallest number of processes to resume with if fewer slots are free',
      wholeNumber,
    )
    .option(
      '--synchronization <when>',
      `when they exchange what they learned, one of ${Object.keys(synchronizations).join(', ')}`,
    )
    .option(
      '--reduction <type>',
      `number format in which they exchange gradients, one of ${Object.keys(reductionTypes).join(', ')}`,
    )
    .option('--precision <type>', `one of ${Object.keys(precisions).join(', ')}`)
    .option(
      '--head-precision <precision>',
      `arithmetic of the head in training steps, one of ${Object.keys(headPrecisions).join(', ')}; int8 is faster, on processors only`,
    )
    .option(
      '--recomputation <what>',
      `what the backward pass computes again instead of keeping it, one of ${Object.keys(recomputations).join(', ')}`,
    )
    .option(
      '--end-of-data <what>',
      `what happens after one pass over the data, one of ${Object.keys(endsOfData).join(', ')}`,
    )
    .option(
      '--moments <type>',
      `type of the moments of the optimizer, one of ${Object.keys(momentTypes).join(', ')}`,
    )
    .option(
      '--optimizer <name>',
      `optimizer of full-rank steps in all phases, one of ${Object.keys(fullRankOptimizers).join(', ')}`,
    )
    .option(
      '--adapter-optimizer <name>',
      `optimizer of A and B, one of ${Object.keys(adapterOptimizers).join(', ')}`,
    )
    .option('--graph <graph>', `how adapted layers are computed, one of ${Object.keys(graphs).join(', ')}`)
    .option(
      '--initialisation <how>',
      `initial value of A in each cycle, one of ${Object.keys(initialisations).join(', ')}`,
    )
    .option(
      '--train <factors>',
      `which factors of the adapters are trained, one of ${Object.keys(trainedFactors).join(', ')}`,
    )
    .option(
      '--cycle-growth <x>',
      'ratio of the length of each cycle to that of the one before',
      decimalNumber,
    )
    .option(
      '--full-rank-steps <n>',
      'full-rank steps at the beginning of each cycle but the first',
      wholeNumber,
    )
    .option(
      '--module-rank <module=n>',
      'rank of one kind of layer, for example q_proj=64; may be repeated',
      moduleRank,
    )
    .option('--scaling <scale>', `scale of the adapters, one of ${Object.keys(scalings).join(', ')}`)
    .option('--b-rate-ratio <x>', 'ratio of the learning rate of B to that of A', decimalNumber)
    .option('--seed <n>', 'seed of weights, adapters and data order', wholeNumber)
    .option('--evaluate-every <n>', 'steps between evaluations, or a time: 15min', cadence)
    .option(
      '--evaluation <name=what[@cadence]>',
      'also evaluate on datasets/… or on a file of questions while training, by default at each tenth of the steps; may be repeated',
      namedEvaluation,
    )
    .option('--checkpoint-every <n>', 'steps between checkpoints, or a time: 15min', cadence)
    .option('--sample-every <n>', 'steps between samples, or a time: 15min', cadence)
    .option('--every-step', 'report an event for each step; by default at most ten per second')
    .option('--keep-best', 'keep the checkpoint with the lowest held-out loss')
    .option('--export-best', 'keep that checkpoint, and export its weights instead of the last')
    .option(
      '--stop-patience <n>',
      'end after this many evaluations without a lower held-out loss',
      wholeNumber,
    )
    .option('--stop-improvement <x>', 'by how much a loss must be lower to count', decimalNumber)
    .option('--stop-loss <x>', 'end at this held-out loss', decimalNumber)
    .option('--stop-tokens <n>', 'end after this many tokens', wholeNumber)
    .option('--stop-after <time>', 'end this long after the start: 8h, 2d', timeSpan)
    .option(
      '--stop-device-hours <x>',
      'end after the trainers of the job have used their devices this long',
      decimalNumber,
    );
}

/** The specification from a file, if one is named, with the flags applied to it. */
export async function readSpec(flags: SpecFlags, base: JobSpec = {}): Promise<JobSpec> {
  const spec = flags.spec === undefined ? { ...base } : await readSpecFile(flags.spec);
  if (flags.kind !== undefined) spec.kind = oneOf('--kind', flags.kind, kinds);
  if (flags.preset !== undefined && flags.baseWeights !== undefined)
    throw new UsageError('--preset and --base-weights cannot be used together');
  if (flags.preset !== undefined) spec.model = { preset: flags.preset };
  if (flags.baseWeights !== undefined) spec.model = { baseWeights: baseWeights(flags.baseWeights) };
  if (flags.dataset !== undefined && flags.mixture !== undefined)
    throw new UsageError('--dataset and --mixture cannot be used together');
  // A flag takes precedence over both fields of a file.
  if (flags.dataset !== undefined) delete spec.mixture;
  if (flags.mixture !== undefined) delete spec.dataset;
  if (flags.steps !== undefined) delete spec.tokenCount;
  if (flags.tokens !== undefined) delete spec.stepCount;
  if (flags.precision !== undefined) spec.precision = oneOf('--precision', flags.precision, precisions);
  if (flags.headPrecision !== undefined)
    spec.headPrecision = oneOf('--head-precision', flags.headPrecision, headPrecisions);
  if (flags.recomputation !== undefined)
    spec.recomputation = oneOf('--recomputation', flags.recomputation, recomputations);
  if (flags.endOfData !== undefined) spec.endOfData = oneOf('--end-of-data', flags.endOfData, endsOfData);
  assign(spec, {
    replicas: flags.replicas,
    replicasMin: flags.replicasMin,
    synchronization:
      flags.synchronization === undefined
        ? undefined
        : oneOf('--synchronization', flags.synchronization, synchronizations),
    reductionType:
      flags.reduction === undefined ? undefined : oneOf('--reduction', flags.reduction, reductionTypes),
    recipe: flags.recipe,
    dataset: flags.dataset === undefined ? undefined : datasetName(flags.dataset),
    mixture: flags.mixture,
    stepCount: flags.steps,
    tokenCount: flags.tokens,
    omittedSteps: flags.omitSteps ?? flags.skipSteps,
    seed: flags.seed,
    everyStepEvent: flags.everyStep,
  });
  const optimizer =
    flags.optimizer === undefined ? undefined : oneOf('--optimizer', flags.optimizer, fullRankOptimizers);
  const isFullRank = spec.kind === JobKind.FULL_RANK;
  spec.warmStart = over(spec.warmStart, {
    stepCount: flags.warmStart,
    optimizer: isFullRank || flags.warmStart === 0 ? undefined : optimizer,
  });
  spec.adapter = over(spec.adapter, {
    rank: flags.rank,
    alpha: flags.alpha,
    cycleStepCount: flags.cycle,
    graph: flags.graph === undefined ? undefined : oneOf('--graph', flags.graph, graphs),
    initialisation:
      flags.initialisation === undefined
        ? undefined
        : oneOf('--initialisation', flags.initialisation, initialisations),
    trainedFactors: flags.train === undefined ? undefined : oneOf('--train', flags.train, trainedFactors),
    cycleGrowth: flags.cycleGrowth,
    fullRankStepCount: flags.fullRankSteps,
    moduleRanks: flags.moduleRank,
    scaling: flags.scaling === undefined ? undefined : oneOf('--scaling', flags.scaling, scalings),
    bLearningRateRatio: flags.bRateRatio,
    fullRankOptimizer: flags.fullRankSteps ? optimizer : undefined,
    adapterOptimizer:
      flags.adapterOptimizer === undefined
        ? undefined
        : oneOf('--adapter-optimizer', flags.adapterOptimizer, adapterOptimizers),
  });
  spec.optimizer = over(spec.optimizer, {
    momentType: flags.moments === undefined ? undefined : oneOf('--moments', flags.moments, momentTypes),
    fullRankOptimizer: isFullRank ? optimizer : undefined,
  });
  spec.learningRate = over(spec.learningRate, { peak: flags.lr });
  spec.batch = over(spec.batch, {
    sequenceCount: flags.batch,
    microBatchSequenceCount: flags.microBatch,
    sequenceLength: flags.sequenceLength,
    maskDocuments: flags.maskDocuments,
  });
  spec.evaluation = over(spec.evaluation, { ...flags.evaluateEvery });
  if (flags.evaluation !== undefined)
    spec.evaluations = await Promise.all(flags.evaluation.map(readEvaluation));
  spec.checkpoint = over(spec.checkpoint, {
    ...flags.checkpointEvery,
    keepBest: flags.keepBest ?? flags.exportBest,
  });
  spec.export = over(spec.export, { weights: flags.exportBest ? ExportedWeights.BEST : undefined });
  spec.stop = over(spec.stop, {
    patienceEvaluationCount: flags.stopPatience,
    minImprovement: flags.stopImprovement,
    evaluationLoss: flags.stopLoss,
    tokenCount: flags.stopTokens,
    seconds: flags.stopAfter,
    deviceHours: flags.stopDeviceHours,
  });
  spec.sample = over(spec.sample, { ...flags.sampleEvery });
  return spec;
}

function moduleRank(value: string, before: ModuleRank[] = []): ModuleRank[] {
  const [name = '', rank = ''] = value.split('=');
  return [...before, { module: oneOf('--module-rank', name, modules), rank: wholeNumber(rank) }];
}

type NamedEvaluation = Partial<Cadence> & {
  name: string;
  /** A data set, or a file of questions. */
  what: string;
};

function namedEvaluation(value: string, before: NamedEvaluation[] = []): NamedEvaluation[] {
  const [, name, what, every] = /^([^=]+)=(.+?)(?:@([^@/]+))?$/.exec(value) ?? [];
  if (name === undefined || what === undefined)
    throw new UsageError(
      `--evaluation: expected name=datasets/… or name=FILE, optionally followed by @INTERVAL, got ${JSON.stringify(value)}`,
    );
  return [...before, { name, what, ...(every !== undefined && cadence(every)) }];
}

async function readEvaluation({ name, what, ...every }: NamedEvaluation) {
  return what.startsWith('datasets/')
    ? { name, dataset: what, ...every }
    : { name, questions: await readTextFile(what), ...every };
}

/** Reads a text file that a flag names. */
export async function readTextFile(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new UsageError(`${path} could not be read: ${pathProblem(error)}`);
  }
}

function mixturePart(value: string, before: MixturePart[] = []): MixturePart[] {
  const [name = '', weight] = value.split('=');
  const part = weight === undefined ? {} : { weight: decimalNumber(weight) };
  return [...before, { dataset: datasetName(name), ...part }];
}

export function datasetName(name: string): string {
  return name.includes('/') ? name : `datasets/${name}`;
}

function stepRange(value: string, before: StepRange[] = []): StepRange[] {
  const [first = '', last = first] = value.split('-');
  return [...before, { first: wholeNumber(first), last: wholeNumber(last) }];
}

/** A path becomes absolute, so names cannot be mistaken for one. */
function baseWeights(text: string): { weights: string } | { artifact: string } | { path: string } {
  if (text.startsWith('weights/')) return { weights: text };
  return text.startsWith('jobs/') ? { artifact: text } : { path: text };
}

export function wholeNumber(value: string): number {
  if (!/^\d{1,15}$/.test(value))
    throw new UsageError(`Expected a whole number, got ${JSON.stringify(value)}`);
  return Number(value);
}

export function positiveNumber(value: string): number {
  const number = wholeNumber(value);
  if (number === 0) throw new UsageError('Expected a whole number above 0, got 0');
  return number;
}

/** For example 1,2,3 */
export function wholeNumbers(value: string): number[] {
  return value.split(',').map((each) => wholeNumber(each.trim()));
}

export function decimalNumbers(value: string): number[] {
  return value.split(',').map(decimalNumber);
}

/** For example full-rank,relora,lora */
export function kindList(value: string): JobKind[] {
  return value.split(',').map((each) => oneOf('A kind', each.trim(), kinds));
}

export function decimalNumber(value: string): number {
  const number = Number(value);
  if (value.trim() === '' || !Number.isFinite(number))
    throw new UsageError(`Expected a number, got ${JSON.stringify(value)}`);
  return number;
}

export function numberAboveZero(value: string): number {
  const number = decimalNumber(value);
  if (number <= 0) throw new UsageError(`Expected a number above 0, got ${JSON.stringify(value)}`);
  return number;
}

async function readSpecFile(path: string): Promise<JobSpec> {
  let content: string;
  try {
    content = path === '-' ? await text(process.stdin) : await readFile(path, 'utf8');
  } catch (error) {
    throw new UsageError(`${path} could not be read: ${pathProblem(error)}`);
  }
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (error) {
    throw new UsageError(
      `${path === '-' ? 'Standard input' : path} is not JSON: ${(error as Error).message}`,
    );
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new UsageError(`${path} must contain an object, a JobSpec`);
  return parseJobSpec(value);
}

export function oneOf<T>(flag: string, value: string, values: Record<string, T>): T {
  const found = Object.hasOwn(values, value) ? values[value] : undefined;
  if (found === undefined)
    throw new UsageError(`${flag} is one of ${Object.keys(values).join(', ')}, not ${JSON.stringify(value)}`);
  return found;
}

function over<T extends object>(base: T | undefined, values: Partial<T>): T | undefined {
  const result = { ...base } as T;
  assign(result, values);
  return Object.keys(result).length > 0 ? result : undefined;
}

function assign<T extends object>(target: T, values: Partial<T>): void {
  for (const [key, value] of Object.entries(values))
    if (value !== undefined) Object.assign(target, { [key]: value });
}
