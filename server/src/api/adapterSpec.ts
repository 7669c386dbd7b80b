import {
  cycleAt,
  largestRank,
  missingSteps,
  targetModules,
  type AdapterSettings,
  type CycleShape,
  type LlamaConfig,
  type Precision,
  type RunSpec,
  type TargetModule,
} from '@relora/engine/plan';
import type { AdapterSpec, ModuleRank } from '@relora/sdk/contract';
import {
  adapterGraphs,
  adapterScalings,
  initialisations,
  momentResets,
  targetModuleNames,
  toEnum,
  trainedFactorChoices,
} from './enums.js';
import type { FieldChecks } from './fieldChecks.js';

/** The adapters and their restarts, with every default filled in. */
export function parseAdapter(
  checks: FieldChecks,
  spec: AdapterSpec | undefined,
  kind: RunSpec['kind'],
  stepCount: number,
  model: LlamaConfig | undefined,
  { rankMax }: { rankMax: number },
): AdapterSettings {
  const modules = parseTargetModules(checks, spec?.targetModules ?? []);
  const holding = (some: readonly TargetModule[]): number =>
    Math.min(rankMax, model === undefined ? Infinity : largestRank(model, some));
  const moduleRanks = parseModuleRanks(checks, spec?.moduleRanks ?? [], modules, holding);
  const rankHolding = holding(modules.filter((module) => moduleRanks[module] === undefined));
  const cycles = parseCycles(checks, spec, kind, stepCount);
  const momentReset =
    checks.choice(
      'spec.adapter.moment_reset',
      spec?.momentReset ?? 'MOMENT_RESET_ZERO',
      momentResets,
      'ZERO, RANDOM or MAGNITUDE',
    ) ?? 'zero';
  if (cycles.fullRankStepCount > 0 && momentReset !== 'zero') {
    checks.add(
      'spec.adapter.moment_reset',
      'ZERO with full_rank_step_count, after which adapters begin with new moments',
      momentReset.toUpperCase(),
    );
  }
  const trainedFactors =
    checks.choice(
      'spec.adapter.trained_factors',
      spec?.trainedFactors ?? 'TRAINED_FACTORS_BOTH',
      trainedFactorChoices,
      'BOTH or B_ONLY',
    ) ?? 'both';
  const bLearningRateRatio = checks.number(
    'spec.adapter.b_learning_rate_ratio',
    spec?.bLearningRateRatio,
    1,
    { min: 0, max: 1000, above: true },
  );
  if (trainedFactors === 'bOnly' && bLearningRateRatio !== 1) {
    checks.add(
      'spec.adapter.b_learning_rate_ratio',
      '1 with B_ONLY, where A has no rate: learning_rate.peak is that of B',
      bLearningRateRatio,
    );
  }
  return {
    rank: checks.integer('spec.adapter.rank', spec?.rank, Math.min(128, rankHolding), 1, rankHolding),
    alpha: checks.number('spec.adapter.alpha', spec?.alpha, 32, { min: 0, max: 1e6, above: true }),
    dropout: checks.number('spec.adapter.dropout', spec?.dropout, 0, { min: 0, max: 0.9 }),
    ...cycles,
    momentReset,
    momentPruneRatio: checks.number('spec.adapter.moment_prune_ratio', spec?.momentPruneRatio, 0.9, {
      min: 0,
      max: 1,
      above: true,
      below: true,
    }),
    targetModules: modules,
    trainableScale: spec?.trainableScale ?? false,
    graph:
      checks.choice(
        'spec.adapter.graph',
        spec?.graph ?? 'ADAPTER_GRAPH_AUTO',
        adapterGraphs,
        'AUTO, SEPARATE, MERGED or WEIGHT_GRADIENT',
      ) ?? 'auto',
    initialisation:
      checks.choice(
        'spec.adapter.initialisation',
        spec?.initialisation ?? 'INITIALISATION_RANDOM',
        initialisations,
        'RANDOM or GRADIENT_SVD',
      ) ?? 'random',
    trainedFactors,
    moduleRanks,
    scaling:
      checks.choice(
        'spec.adapter.scaling',
        spec?.scaling ?? 'ADAPTER_SCALING_ALPHA_OVER_RANK',
        adapterScalings,
        'ALPHA_OVER_RANK or ALPHA_OVER_SQRT_RANK',
      ) ?? 'alphaOverRank',
    bLearningRateRatio,
  };
}

type CycleSettings = Pick<
  AdapterSettings,
  'cycleStepCount' | 'cycleGrowth' | 'fullRankStepCount' | 'restartWarmupStepCount'
>;

/** When a cycle ends and what it begins with. LORA has one cycle, as long as the run. */
function parseCycles(
  checks: FieldChecks,
  spec: AdapterSpec | undefined,
  kind: RunSpec['kind'],
  stepCount: number,
): CycleSettings {
  const field = 'spec.adapter.cycle_step_count';
  let cycleStepCount = stepCount;
  if (kind === 'relora') {
    if (spec?.cycleStepCount === undefined)
      checks.add(field, 'the steps between restarts; RELORA needs it', 'none');
    cycleStepCount = checks.integer(field, spec?.cycleStepCount, stepCount, 1, stepCount);
  } else {
    const useless = {
      [field]: spec?.cycleStepCount === stepCount ? undefined : spec?.cycleStepCount,
      'spec.adapter.cycle_growth': spec?.cycleGrowth === 1 ? undefined : spec?.cycleGrowth,
      'spec.adapter.full_rank_step_count': spec?.fullRankStepCount || undefined,
    };
    for (const [name, value] of Object.entries(useless))
      if (value !== undefined) checks.add(name, 'nothing for LORA, which has no restarts', value);
  }
  const cycleGrowth = checks.number('spec.adapter.cycle_growth', spec?.cycleGrowth, 1, { min: 1, max: 10 });
  if (
    kind === 'relora' &&
    spec?.allowShortLastCycle !== true &&
    ![field, 'spec.step_count', 'spec.adapter.cycle_growth'].some((name) => checks.isWrong(name))
  )
    checkLastCycle(checks, stepCount, { cycleStepCount, cycleGrowth });

  const restartWarmupStepCount = checks.integer(
    'spec.adapter.restart_warmup_step_count',
    spec?.restartWarmupStepCount,
    Math.floor(cycleStepCount / 20),
    0,
    Math.max(0, cycleStepCount - 1),
  );
  const fullRankStepCount = checks.integer(
    'spec.adapter.full_rank_step_count',
    spec?.fullRankStepCount,
    0,
    0,
    Math.max(0, cycleStepCount - restartWarmupStepCount - 1),
  );
  return { cycleStepCount, cycleGrowth, fullRankStepCount, restartWarmupStepCount };
}

/** The phase ends with a whole cycle, so that no learning is cut short without anyone having meant it. */
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

/** Ranks of modules that are adapted, each once and no higher than their layers can hold. */
function parseModuleRanks(
  checks: FieldChecks,
  values: ModuleRank[],
  adapted: readonly TargetModule[],
  holding: (modules: readonly TargetModule[]) => number,
): AdapterSettings['moduleRanks'] {
  const ranks: AdapterSettings['moduleRanks'] = {};
  const field = 'spec.adapter.module_ranks';
  if (values.length > 64) checks.add(field, 'at most seven modules', values.length);
  for (const [index, value] of values.slice(0, 64).entries()) {
    const name = `${field}[${index}].module`;
    const names = adapted.map((module) => toEnum.targetModule[module]).join(', ');
    const module = checks.choice(name, value.module, targetModuleNames, names);
    if (module === undefined) continue;
    if (!adapted.includes(module)) checks.add(name, `one of target_modules: ${names}`, value.module);
    else if (ranks[module] !== undefined) checks.add(name, 'each module once', value.module);
    else ranks[module] = checks.integer(`${field}[${index}].rank`, value.rank, 1, 1, holding([module]));
  }
  return ranks;
}

function parseTargetModules(checks: FieldChecks, values: string[]): TargetModule[] {
  const asked = new Set<TargetModule>();
  for (const [index, value] of values.slice(0, 64).entries()) {
    const module = checks.choice(
      `spec.adapter.target_modules[${index}]`,
      value,
      targetModuleNames,
      Object.keys(targetModuleNames).join(', '),
    );
    if (module !== undefined && asked.has(module))
      checks.add(`spec.adapter.target_modules[${index}]`, 'each module once', value);
    if (module !== undefined) asked.add(module);
  }
  if (values.length > 64) checks.add('spec.adapter.target_modules', 'at most seven modules', values.length);
  return asked.size === 0 ? [...targetModules] : targetModules.filter((module) => asked.has(module));
}

/** Merged weights have no place for a mask over the adapter's input alone, and a quantized base is packed once a cycle. */
export function checkGraph(
  checks: FieldChecks,
  { graph, dropout }: AdapterSettings,
  precision: Precision,
): void {
  const field = 'spec.adapter.graph';
  if (dropout > 0 && (graph === 'merged' || graph === 'weightGradient'))
    checks.add(field, `AUTO or SEPARATE with dropout ${dropout}`, graphNames[graph]);
  else if (graph === 'merged' && (precision === 'int8Base' || precision === 'nf4Base'))
    checks.add(field, 'AUTO, SEPARATE or WEIGHT_GRADIENT with a quantized base', graphNames[graph]);
}

const graphNames = { merged: 'MERGED', weightGradient: 'WEIGHT_GRADIENT' };
