import {
  linearShapes,
  Schedule,
  sequencesInPass,
  type AdapterSettings,
  type LlamaConfig,
  type RunSpec,
} from '@relora/engine/plan';
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
    const layers = layersAboveBreakEven(spec.model, adapter);
    if (layers.length > 0)
      warnings.push({
        reason: 'RANK_ABOVE_BREAK_EVEN',
        message: `Rank ${adapter.rank} is above the break-even of ${layers.join(', of ')}`,
      });
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
    const { sequenceCount, sequenceLength } = spec.batch;
    const { tokenCount } = prepared.train;
    const sequences = sequencesInPass(tokenCount, sequenceLength);
    const passes = (new Schedule(spec).stepCount * sequenceCount) / sequences;
    if (passes > 1) {
      const rest = tokenCount - 1 - sequences * sequenceLength;
      warnings.push({
        reason: 'DATA_REPEATED',
        message:
          `The run reads its training part ${passes.toFixed(1)} times, each time in another order and without its last ${rest} tokens, which fill no sequence` +
          (passes > 4 ? '; beyond about four times little is learned' : ''),
      });
    }
    if (prepared.heldOut.tokenCount === 0) {
      warnings.push({
        reason: 'HELD_OUT_EMPTY',
        message: `The held-out part of ${spec.dataset} is empty: the model is not evaluated`,
      });
    }
  }
  return warnings;
}

/**
 * Layers that cost less when they are trained in full, those of one shape together. Per token a trained layer takes 6·in·out
 * operations, an adapted one 4·in·out + 6·rank·(in + out): docs/relora.md.
 */
function layersAboveBreakEven(model: LlamaConfig, { rank, targetModules }: AdapterSettings): string[] {
  const shapes = linearShapes(model);
  const found = new Map<string, string[]>();
  for (const module of targetModules) {
    const { inFeatures, outFeatures } = shapes[module];
    const weights = inFeatures * outFeatures;
    const breakEven = Math.floor(weights / (3 * (inFeatures + outFeatures)));
    if (rank <= breakEven) continue;
    const ratio = (4 * weights + 6 * rank * (inFeatures + outFeatures)) / (6 * weights);
    const figures = `${breakEven} (there ${ratio.toFixed(2)} times the arithmetic of full-rank training)`;
    found.set(figures, [...(found.get(figures) ?? []), module]);
  }
  return [...found].map(([figures, modules]) => `${modules.join(', ')}: ${figures}`);
}
