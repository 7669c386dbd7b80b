import { isDeepStrictEqual } from 'node:util';
import * as plan from '@relora/engine/plan';
import type { BatchSettings, Context, Draft, RunSpec, StepRange } from '@relora/engine/plan';
import type { JobSpec } from '@relora/sdk/contract';
import type { DatasetHead } from '../datasets/dataset.js';
import { quote, type FieldProblem } from '../errors.js';
import { checkGraph, parseAdapter } from './adapterSpec.js';
import { enums } from './enums.js';
import { parseEvaluations } from './evaluationSpec.js';
import { parseExportSpec } from './exportSpec.js';
import { FieldChecks } from './fieldChecks.js';
import { parseModelSpec, type FoundBaseWeights } from './modelSpec.js';
import { parseRecipe, recipes, withRecipe } from './recipes.js';
import { parseDatasets, type NamedDataset } from './mixtureSpec.js';
import { checkOptimizers } from './optimizerChecks.js';
import * as specChecks from './specChecks.js';
import { checkStop } from './stopChecks.js';
import { SpecReader } from './specReader.js';
import { warningsOf, type Warning } from './specWarnings.js';

/** The settings that limit a specification. */
export interface Limits {
  parametersMax: number;
  sequenceLengthMax: number;
  vocabularySizeMax: number;
  rankMax: number;
  stepsMax: number;
  mixtureDatasetsMax: number;
  replicasMax: number;
}

/** What a specification names, as found. */
export interface FoundReferences {
  dataset: DatasetHead | undefined;
  /** The data sets of a mixture, by name. */
  mixture?: ReadonlyMap<string, DatasetHead>;
  /** Null if the specification names none. */
  baseWeights: FoundBaseWeights | null;
}

/** Either a run or its problems; warnings come only with a run. */
export type ParsedJobSpec =
  | { spec: RunSpec; problems: []; warnings: Warning[] }
  | { spec: null; problems: FieldProblem[]; warnings: [] };

/** Turns a JobSpec into a RunSpec with every default of job.proto filled in, or finds everything that is wrong with it. */
export function parseJobSpec(
  asked: JobSpec | undefined,
  { dataset, mixture, baseWeights }: FoundReferences,
  limits: Limits,
): ParsedJobSpec {
  if (asked === undefined)
    return { spec: null, problems: [{ field: 'spec', expected: 'a JobSpec', got: 'none' }], warnings: [] };
  const checks = new FieldChecks('JOB_SPEC_INVALID');
  const find = (name: string) => (mixture === undefined ? dataset : mixture.get(name));
  const datasets = parseDatasets(checks, asked, find, limits.mixtureDatasetsMax);
  const draft = plan.emptyDraft(enums.JobKind.from[asked.kind] ?? 'relora', 0, null);
  const reader = new SpecReader(checks, contextOf(draft, datasets, limits));

  const source = parseModelSpec(reader, asked.model, baseWeights);
  const run = parseRun(reader, asked, datasets, source?.model);
  run.evaluations = parseEvaluations(reader, asked.evaluations, find, datasets[0]!);

  specChecks.checkLastPhase(checks, run);
  specChecks.checkReplicas(checks, run);
  specChecks.checkSynchronization(checks, run);
  specChecks.checkHeadPrecision(checks, run);
  checkOptimizers(checks, run);
  const isHeldOut = datasets.some(({ head }) => head?.prepared?.heldOut.tokenCount !== 0);
  checkStop(checks, run, isHeldOut);
  specChecks.checkTrainingPart(checks, run, datasets);
  if (source !== undefined) {
    specChecks.checkModelSize(checks, { ...run, ...source }, limits.parametersMax);
    specChecks.checkCodedWidths(checks, { ...run, ...source });
  }
  if (source === undefined || checks.problems.length > 0)
    return { spec: null, problems: checks.problems, warnings: [] };
  const spec: RunSpec = { ...run, ...source };
  return { spec, problems: [], warnings: warningsOf(spec, datasets) };
}

/** Everything but the model, ordered so that each part can use those before it. */
function parseRun(
  reader: SpecReader,
  asked: JobSpec,
  datasets: readonly NamedDataset[],
  model: RunSpec['model'] | undefined,
): specChecks.ModelessRun {
  const { checks, context } = reader;
  const draft = context.spec;
  if (asked.model?.baseWeights !== undefined) draft.baseWeightsFolder = 'somewhere'; // only its presence counts: a warm start depends on it
  const batch = reader.read('spec.batch', plan.batchSettings, asked.batch, draft.batch);
  specChecks.checkBatch(checks, batch);
  draft.stepCount = parseStepCount(checks, asked, batch, context.stepsMax);
  const recipe = parseRecipe(checks, asked);
  const spec = withRecipe(recipe, asked, draft.stepCount);

  if (draft.kind === 'fullRank' && spec.adapter !== undefined)
    checks.add('spec.adapter', 'nothing for FULL_RANK', 'an AdapterSpec');
  const adapter =
    draft.kind === 'fullRank'
      ? null
      : parseAdapter(reader.with({ alphaOverRank: recipes[recipe]!.alphaOverRank }), spec.adapter, model);
  const warmStart = parseWarmStart(reader, spec);
  const stepCountOfAll = warmStart.stepCount + draft.stepCount;
  if (stepCountOfAll > context.stepsMax) {
    checks.add(
      'spec.step_count',
      `at most ${context.stepsMax} steps with those of the warm start`,
      stepCountOfAll,
    );
  }

  const settings = reader.read('spec', plan.runSettings, spec);
  const acceptedDevices = parseAcceptedDevices(checks, spec.acceptedDevices, settings.device);
  specChecks.checkPrecision(checks, { ...settings, acceptedDevices }, spec.precision);
  if (adapter !== null) checkGraph(checks, adapter, settings.precision);
  return {
    ...settings,
    dataset: datasets[0]!.dataset,
    // A single data set is not a mixture.
    mixture: datasets.length > 1 ? datasets.map(({ dataset, weight }) => ({ dataset, weight })) : [],
    warmStart,
    adapter,
    stepCount: draft.stepCount,
    omittedSteps: parseOmittedSteps(checks, spec, stepCountOfAll),
    omittedDocuments: parseOmittedDocuments(checks, spec, datasets),
    acceptedDevices,
    streams: reader.read('spec.streams', plan.streamSettings, spec.streams),
    baseWeightsHash: 'content',
    recipe,
    learningRate: reader.read('spec.learning_rate', plan.learningRateSettings, spec.learningRate),
    optimizer: reader.read('spec.optimizer', plan.optimizerSettings, spec.optimizer),
    batch,
    evaluations: [],
    evaluation: reader.read('spec.evaluation', plan.evaluationSettings, plan.withCadence(spec.evaluation)),
    checkpoint: reader.read('spec.checkpoint', plan.checkpointSettings, plan.withCadence(spec.checkpoint)),
    stop: reader.read('spec.stop', plan.stopSettings, spec.stop),
    sample: reader.read('spec.sample', plan.sampleSettings, plan.withCadence(spec.sample)),
    export: parseExportSpec(reader, spec.export),
  };
}

function contextOf(spec: Draft, datasets: readonly NamedDataset[], limits: Limits): Context {
  const heldOut = datasets.map(({ head }) => head?.prepared?.heldOut.tokenCount ?? 0);
  return {
    spec,
    stepsMax: limits.stepsMax,
    sequenceLengthMax: limits.sequenceLengthMax,
    rankMax: limits.rankMax,
    vocabularySizeMax: limits.vocabularySizeMax,
    replicasMax: limits.replicasMax,
    vocabularySize: datasets[0]?.head?.prepared?.tokenizer.vocabularySize ?? null,
    heldOutTokenCount: Math.max(...heldOut),
    alphaOverRank: null,
  };
}

/** The steps of the main phase, which may be given as tokens. */
function parseStepCount(
  checks: FieldChecks,
  { stepCount, tokenCount }: JobSpec,
  { sequenceCount, sequenceLength }: BatchSettings,
  stepsMax: number,
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

/** Under its present name or that of 0.1.0; a specification that came from a server has both. */
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

/** Documents to omit: of data sets that are trained on, within their training parts, and not overlapping. */
function parseOmittedDocuments(
  checks: FieldChecks,
  { omittedDocuments }: JobSpec,
  datasets: readonly NamedDataset[],
): plan.OmittedDocument[] {
  const field = 'spec.omitted_documents';
  checks.count(field, omittedDocuments, omittedDocumentsMax);
  const taken = new Map<string, [start: number, end: number][]>();
  return omittedDocuments.slice(0, omittedDocumentsMax).map(({ dataset, firstToken, tokenCount }, index) => {
    const name = `${field}[${index}]`;
    const part = datasets.find((each) => each.dataset === dataset && each.weight > 0);
    if (part === undefined)
      checks.add(`${name}.dataset`, 'a data set that the job trains on', quote(dataset));
    const tokens = part?.head?.prepared?.train.tokenCount ?? Number.MAX_SAFE_INTEGER;
    const first = checks.integer(`${name}.first_token`, firstToken, 0, 0, tokens - 1);
    const count = checks.integer(`${name}.token_count`, tokenCount, 1, 1, tokens - first);
    const others = taken.get(dataset) ?? [];
    if (others.some(([start, end]) => first < end && start < first + count))
      checks.add(name, 'documents apart from each other', `tokens ${first} to ${first + count - 1} again`);
    taken.set(dataset, [...others, [first, first + count]]);
    return { dataset, firstToken: first, tokenCount: count };
  });
}

const omittedDocumentsMax = 1000;

/** Each device once; `auto` accepts what there is by itself. */
function parseAcceptedDevices(
  checks: FieldChecks,
  asked: readonly string[],
  device: RunSpec['device'],
): RunSpec['acceptedDevices'] {
  const field = 'spec.accepted_devices';
  if (device === 'auto' && asked.length > 0)
    checks.add(field, 'unset if device is auto, which takes what there is', quote(asked.join(', ')));
  const names = plan.deviceChoices.filter((name) => name !== 'auto');
  const wrong = asked.find(
    (name, index) => !names.some((other) => other === name) || asked.indexOf(name) !== index,
  );
  if (device !== 'auto' && wrong !== undefined)
    checks.add(field, `each of ${names.join(', ')} once`, quote(wrong));
  return names.filter((name) => asked.includes(name));
}

function parseWarmStart(reader: SpecReader, spec: JobSpec): RunSpec['warmStart'] {
  const { warmStart: draft, kind } = reader.context.spec;
  const warmStart = reader.read('spec.warm_start', plan.warmStartSettings, spec.warmStart, draft);
  if (kind !== 'fullRank') return warmStart;
  if (spec.warmStart !== undefined)
    reader.checks.add('spec.warm_start', 'nothing for FULL_RANK', 'a WarmStartSpec');
  return Object.assign(warmStart, { stepCount: 0 });
}
