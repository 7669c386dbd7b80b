import {
  adapterSettings,
  cycleAt,
  emptyAdapter,
  largestRank,
  missingSteps,
  targetModules,
  type AdapterSettings,
  type CycleShape,
  type LlamaConfig,
  type Precision,
  type TargetModule,
} from '@relora/engine/plan';
import type { AdapterSpec, ModuleRank } from '@relora/sdk/contract';
import { capitals, enums } from './enums.js';
import type { FieldChecks } from './fieldChecks.js';
import type { SpecReader } from './specReader.js';

/** The adapters and their restarts, with every default filled in. */
export function parseAdapter(
  reader: SpecReader,
  spec: AdapterSpec | undefined,
  model: LlamaConfig | undefined,
): AdapterSettings {
  const { checks, context } = reader;
  const draft = context.spec;
  const modules = parseTargetModules(checks, spec?.targetModules ?? []);
  const rankMaxOf = (some: readonly TargetModule[]): number =>
    Math.min(context.rankMax, model === undefined ? Infinity : largestRank(model, some));
  const moduleRanks = parseModuleRanks(checks, spec?.moduleRanks ?? [], modules, rankMaxOf);
  const rankMax = rankMaxOf(modules.filter((module) => moduleRanks[module] === undefined));

  const isLora = draft.kind === 'lora';
  if (isLora) checkOneCycle(checks, spec, draft.stepCount);
  else if (spec?.cycleStepCount === undefined)
    checks.add('spec.adapter.cycle_step_count', 'the steps between restarts; RELORA needs it', 'none');
  // The single cycle of LORA is as long as the run.
  const given = isLora ? { ...spec, cycleStepCount: undefined } : spec;
  draft.adapter = emptyAdapter();
  const settings = reader.with({ rankMax }).read('spec.adapter', adapterSettings, given, draft.adapter);
  const cycleFields = ['step_count', 'adapter.cycle_step_count', 'adapter.cycle_growth'];
  if (
    !isLora &&
    spec?.allowShortLastCycle !== true &&
    !cycleFields.some((name) => checks.isWrong(`spec.${name}`))
  )
    checkLastCycle(checks, draft.stepCount, settings);
  checkTraining(checks, settings);
  return { ...settings, targetModules: modules, moduleRanks };
}

/** Settings that only have a meaning with restarts are refused without them. */
function checkOneCycle(checks: FieldChecks, spec: AdapterSpec | undefined, stepCount: number): void {
  const ofRestarts = {
    cycle_step_count: spec?.cycleStepCount === stepCount ? undefined : spec?.cycleStepCount,
    cycle_growth: spec?.cycleGrowth === 1 ? undefined : spec?.cycleGrowth,
    full_rank_step_count: spec?.fullRankStepCount || undefined,
  };
  for (const [name, value] of Object.entries(ofRestarts))
    if (value !== undefined)
      checks.add(`spec.adapter.${name}`, 'nothing for LORA, which has no restarts', value);
}

/** Refuses settings for training A and B that exclude each other. */
function checkTraining(
  checks: FieldChecks,
  settings: Pick<
    AdapterSettings,
    'fullRankStepCount' | 'momentReset' | 'trainedFactors' | 'bLearningRateRatio'
  >,
): void {
  const { fullRankStepCount, momentReset, trainedFactors, bLearningRateRatio } = settings;
  if (fullRankStepCount > 0 && momentReset !== 'zero') {
    checks.add(
      'spec.adapter.moment_reset',
      'ZERO with full_rank_step_count, after which adapters begin with new moments',
      capitals(momentReset),
    );
  }
  if (trainedFactors === 'bOnly' && bLearningRateRatio !== 1) {
    checks.add(
      'spec.adapter.b_learning_rate_ratio',
      '1 with B_ONLY, where A has no rate: learning_rate.peak is that of B',
      bLearningRateRatio,
    );
  }
}

/** The phase must end with a whole cycle, so that the last one is not cut short by accident. */
function checkLastCycle(checks: FieldChecks, stepCount: number, cycles: CycleShape): void {
  const missing = missingSteps(stepCount, cycles);
  if (missing === 0) return;
  const { cycleStepCount, cycleGrowth } = cycles;
  const above = stepCount + missing;
  const below = cycleAt(stepCount - 1, cycles).start;
  const counts = below === 0 ? `step_count ${above}` : `step_count ${below} or ${above}`;
  if (cycleGrowth === 1) {
    checks.add(
      'spec.adapter.cycle_step_count',
      `a divisor of step_count ${stepCount} (nearest ${nearestDivisor(stepCount, cycleStepCount)}; or ${counts}; or allow_short_last_cycle)`,
      cycleStepCount,
    );
  } else {
    checks.add(
      'spec.adapter.cycle_step_count',
      `cycles that end with step_count ${stepCount} (${counts}; or allow_short_last_cycle)`,
      `${cycleStepCount} with cycle_growth ${cycleGrowth}`,
    );
  }
}

function nearestDivisor(count: number, wanted: number): number {
  for (let distance = 1; ; distance++) {
    if (wanted - distance >= 1 && count % (wanted - distance) === 0) return wanted - distance;
    if (count % (wanted + distance) === 0) return wanted + distance;
  }
}

/** Ranks of the adapted modules, each module once and no rank higher than its layers allow. */
function parseModuleRanks(
  checks: FieldChecks,
  values: ModuleRank[],
  adapted: readonly TargetModule[],
  rankMaxOf: (modules: readonly TargetModule[]) => number,
): AdapterSettings['moduleRanks'] {
  const ranks: AdapterSettings['moduleRanks'] = {};
  const field = 'spec.adapter.module_ranks';
  if (values.length > 64) checks.add(field, 'at most seven modules', values.length);
  for (const [index, value] of values.slice(0, 64).entries()) {
    const name = `${field}[${index}].module`;
    const names = adapted.map((module) => enums.TargetModule.to[module]).join(', ');
    const module = checks.choice(name, value.module, enums.TargetModule.from, names);
    if (module === undefined) continue;
    if (!adapted.includes(module)) checks.add(name, `one of target_modules: ${names}`, value.module);
    else if (ranks[module] !== undefined) checks.add(name, 'each module once', value.module);
    else ranks[module] = checks.integer(`${field}[${index}].rank`, value.rank, 1, 1, rankMaxOf([module]));
  }
  return ranks;
}

function parseTargetModules(checks: FieldChecks, values: string[]): TargetModule[] {
  const asked = new Set<TargetModule>();
  for (const [index, value] of values.slice(0, 64).entries()) {
    const module = checks.choice(
      `spec.adapter.target_modules[${index}]`,
      value,
      enums.TargetModule.from,
      Object.keys(enums.TargetModule.from).join(', '),
    );
    if (module !== undefined && asked.has(module))
      checks.add(`spec.adapter.target_modules[${index}]`, 'each module once', value);
    if (module !== undefined) asked.add(module);
  }
  if (values.length > 64) checks.add('spec.adapter.target_modules', 'at most seven modules', values.length);
  return asked.size === 0 ? [...targetModules] : targetModules.filter((module) => asked.has(module));
}

/** Merged weights cannot mask the input of the adapter without that of the base, and a quantized base is packed only once per cycle. */
export function checkGraph(
  checks: FieldChecks,
  { graph, dropout }: AdapterSettings,
  precision: Precision,
): void {
  const field = 'spec.adapter.graph';
  if (dropout > 0 && (graph === 'merged' || graph === 'weightGradient'))
    checks.add(field, `AUTO or SEPARATE with dropout ${dropout}`, capitals(graph));
  else if (graph === 'merged' && (precision === 'int8Base' || precision === 'nf4Base'))
    checks.add(field, 'AUTO, SEPARATE or WEIGHT_GRADIENT with a quantized base', capitals(graph));
  else if (graph !== 'auto' && graph !== 'separate' && precision === 'fp8Base')
    checks.add(field, 'AUTO or SEPARATE with FP8_BASE', capitals(graph));
}
