import { linearShapes, Schedule, type RunSpec, type TargetModule } from '@relora/engine/plan';
import type { PreparedDataset } from '../datasets/dataset.js';
import type { SpecWarning } from '../errors.js';

export interface Warning {
  reason: SpecWarning;
  message: string;
}

/** What is allowed but probably not meant. */
export function warningsOf(spec: RunSpec, prepared: PreparedDataset | null): Warning[] {
  const warnings: Warning[] = [];
  const { adapter } = spec;
  if (adapter !== null) {
    const shapes = linearShapes(spec.model);
    // Per token a trained layer takes 6·in·out operations, an adapted one 4·in·out + 6·rank·(in + out): docs/relora.md.
    const breakEven = (module: TargetModule): number => {
      const { inFeatures, outFeatures } = shapes[module];
      return Math.floor((inFeatures * outFeatures) / (3 * (inFeatures + outFeatures)));
    };
    const above = adapter.targetModules.filter((module) => adapter.rank > breakEven(module));
    if (above.length > 0) {
      const least = Math.min(...above.map(breakEven));
      warnings.push({
        reason: 'RANK_ABOVE_BREAK_EVEN',
        message: `Rank ${adapter.rank} costs ${above.join(', ')} more arithmetic than full-rank training; up to ${least} it saves some`,
      });
    }
  }
  if (spec.kind === 'relora' && adapter !== null) {
    const restarts = new Schedule(spec).restartSteps().length;
    if (restarts < 3)
      warnings.push({
        reason: 'RESTARTS_FEW',
        message: `The run has ${restarts} restarts; ReLoRA gains rank with each, so at least three are usual`,
      });
    if (spec.warmStart.stepCount === 0 && spec.baseWeightsFolder === null) {
      warnings.push({
        reason: 'WARM_START_MISSING',
        message:
          'New weights without a warm start: the paper needs full-rank steps first, a quarter of step_count is the default',
      });
    }
    if (adapter.restartWarmupStepCount * 3 > adapter.cycleStepCount) {
      warnings.push({
        reason: 'CYCLE_SHORT',
        message: `${adapter.restartWarmupStepCount} of ${adapter.cycleStepCount} steps of a cycle raise the learning rate again`,
      });
    }
    const last = spec.stepCount % adapter.cycleStepCount;
    if (last !== 0)
      warnings.push({
        reason: 'LAST_CYCLE_SHORT',
        message: `The last cycle has ${last} steps, the others ${adapter.cycleStepCount}`,
      });
  }
  if (prepared !== null) {
    const epochs =
      (new Schedule(spec).stepCount * spec.batch.sequenceCount * spec.batch.sequenceLength) /
      prepared.train.tokenCount;
    if (epochs > 4)
      warnings.push({
        reason: 'DATA_REPEATED',
        message: `The run reads its training part ${epochs.toFixed(1)} times; beyond about four times little is learned`,
      });
    if (prepared.heldOut.tokenCount === 0) {
      warnings.push({
        reason: 'HELD_OUT_EMPTY',
        message: `The held-out part of ${spec.dataset} is empty: the model is not evaluated`,
      });
    }
  }
  return warnings;
}
