import type { RunSpec } from '@relora/engine/plan';
import type { FieldChecks } from './fieldChecks.js';

/** Stopping early, and keeping the best checkpoint, need the held-out loss that they are decided by. */
export function checkStop(
  checks: FieldChecks,
  {
    stop,
    checkpoint,
    evaluation,
    export: exported,
  }: Pick<RunSpec, 'stop' | 'checkpoint' | 'evaluation' | 'export'>,
  /** Whether a data set has, or may have, a held-out part. */
  isHeldOut: boolean,
): void {
  if (exported.weights === 'best' && !checkpoint.keepBest)
    checks.add('spec.export.weights', 'LAST, or BEST together with checkpoint.keep_best', 'BEST');
  if (stop.minImprovement > 0 && stop.patienceEvaluationCount === 0)
    checks.add(
      'spec.stop.min_improvement',
      '0, or a patience_evaluation_count that it is for',
      stop.minImprovement,
    );
  const byLoss: [field: string, value: number | boolean][] = [
    ['spec.stop.patience_evaluation_count', stop.patienceEvaluationCount],
    ['spec.stop.evaluation_loss', stop.evaluationLoss],
    ['spec.checkpoint.keep_best', checkpoint.keepBest],
  ];
  const isNeverEvaluated = evaluation.everyStepCount === 0 && evaluation.everySeconds === 0;
  for (const [field, value] of byLoss) {
    if (!value) continue;
    const unset = value === true ? 'false' : '0';
    if (!isHeldOut) checks.add(field, `${unset} for a data set without a held-out part`, value);
    else if (isNeverEvaluated)
      checks.add(field, `${unset} where evaluation.every_step_count and every_seconds are 0`, value);
  }
}
