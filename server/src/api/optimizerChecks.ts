import { optimizerSettings, optimizersOf, type RunSpec } from '@relora/engine/plan';
import { capitals } from './enums.js';
import type { FieldChecks } from './fieldChecks.js';
import type { ModelessRun } from './specChecks.js';

/** Refuses optimizers and settings that exclude each other or have no effect. */
export function checkOptimizers(checks: FieldChecks, run: ModelessRun): void {
  checkPhases(checks, run);
  const { optimizer } = run;
  const used = optimizersOf(run);
  // A specification that came from a server has the default in it.
  const isAsked = optimizer.momentum !== optimizerSettings.momentum.default;
  if (isAsked && !used.includes('muon') && !used.includes('loraMuon')) {
    checks.add(
      'spec.optimizer.momentum',
      'nothing without MUON or LORA_MUON, whose it is',
      optimizer.momentum,
    );
  }
  if (optimizer.momentType === 'int8' && used.includes('apolloMini'))
    checks.add(
      'spec.optimizer.moment_type',
      'FLOAT32 with APOLLO_MINI, which has next to no moments',
      'INT8',
    );
  if (run.adapter !== null) checkAdapters(checks, run.adapter);
}

/** Refuses an optimizer for steps that the job does not have. */
function checkPhases(checks: FieldChecks, { kind, optimizer, warmStart, adapter }: ModelessRun): void {
  if (kind !== 'fullRank' && optimizer.fullRankOptimizer !== 'adamw') {
    checks.add(
      'spec.optimizer.full_rank_optimizer',
      'nothing but for FULL_RANK: warm_start.optimizer is that of the warm start, adapter.full_rank_optimizer that of steps between cycles',
      capitals(optimizer.fullRankOptimizer),
    );
  }
  if (warmStart.stepCount === 0 && warmStart.optimizer !== 'adamw')
    checks.add('spec.warm_start.optimizer', 'nothing without a warm start', capitals(warmStart.optimizer));
  if (adapter !== null && adapter.fullRankStepCount === 0 && adapter.fullRankOptimizer !== 'adamw') {
    checks.add(
      'spec.adapter.full_rank_optimizer',
      'nothing without full_rank_step_count',
      capitals(adapter.fullRankOptimizer),
    );
  }
}

function checkAdapters(checks: FieldChecks, adapter: NonNullable<RunSpec['adapter']>): void {
  const { adapterOptimizer, initialisation, momentReset, fullRankStepCount } = adapter;
  const isSpan = initialisation === 'oldSpan' || initialisation === 'halfSpan';
  if (isSpan && fullRankStepCount > 0) {
    checks.add(
      'spec.adapter.initialisation',
      'RANDOM or GRADIENT_SVD with full_rank_step_count, after which there is no old A',
      capitals(initialisation),
    );
  }
  if (momentReset === 'carry' && !(isSpan && adapterOptimizer === 'loraMuon')) {
    checks.add(
      'spec.adapter.moment_reset',
      'ZERO, RANDOM or MAGNITUDE; CARRY is for LORA_MUON with OLD_SPAN or HALF_SPAN, where the new A spans the old one',
      'CARRY',
    );
  }
  if (adapterOptimizer !== 'loraMuon') return;
  if (adapter.trainableScale)
    checks.add('spec.adapter.trainable_scale', 'false with LORA_MUON, whose steps are of the product', true);
  if (adapter.bLearningRateRatio !== 1) {
    checks.add(
      'spec.adapter.b_learning_rate_ratio',
      '1 with LORA_MUON, which balances A and B itself',
      adapter.bLearningRateRatio,
    );
  }
}
