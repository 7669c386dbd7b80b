import {
  cycleAt,
  layerMethod,
  linearShapes,
  needsWarmStart,
  Schedule,
  passesOf,
  sequencesInPass,
  thinPasses,
  type AdapterSettings,
  type LlamaConfig,
  type RunSpec,
} from '@relora/engine/plan';
import type { SpecWarning } from '../errors.js';
import { trainedParts, type NamedDataset } from './mixtureSpec.js';

export interface Warning {
  reason: SpecWarning;
  message: string;
}

/** Warns of what is allowed but probably not intended. */
export function warningsOf(spec: RunSpec, datasets: readonly NamedDataset[]): Warning[] {
  const warnings: Warning[] = [];
  const { adapter } = spec;
  if (adapter !== null) {
    const layers = layersAboveBreakEven(spec.model, adapter);
    if (layers.length > 0)
      warnings.push({
        reason: 'RANK_ABOVE_BREAK_EVEN',
        message: `Rank ${ranksOf(adapter)} is above the break-even of ${layers.join(', of ')}`,
      });
  }
  if (spec.kind === 'relora' && adapter !== null) {
    const restarts = new Schedule(spec).restartCount;
    if (restarts < 3)
      warnings.push({
        reason: 'RESTARTS_FEW',
        message: `The run has ${restarts} restarts; ReLoRA gains rank with each, so at least three are usual`,
      });
    if (spec.warmStart.stepCount === 0 && spec.baseWeightsFolder === null && needsWarmStart(adapter)) {
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
    const { start, stepCount: whole } = cycleAt(spec.stepCount - 1, adapter);
    const last = spec.stepCount - start;
    if (last < whole) {
      const others = adapter.cycleGrowth === 1 ? `the others ${whole}` : `of ${whole} that it would have`;
      warnings.push({ reason: 'LAST_CYCLE_SHORT', message: `The last cycle has ${last} steps, ${others}` });
    }
  }
  return [...warnings, ...warningsOfData(spec, datasets)];
}

function warningsOfData(spec: RunSpec, datasets: readonly NamedDataset[]): Warning[] {
  const warnings: Warning[] = [];
  const { sequenceCount, sequenceLength } = spec.batch;
  const trained = trainedParts(datasets);
  const sequencesOfRun = new Schedule(spec).stepCount * sequenceCount;
  for (const [index, passes] of passesOf(trained, spec.seed, sequencesOfRun, sequenceLength).entries()) {
    if (passes <= 1) continue;
    const { dataset, tokenCount } = trained[index]!;
    const rest = tokenCount - 1 - sequencesInPass(tokenCount, sequenceLength) * sequenceLength;
    const part = datasets.length === 1 ? 'its training part' : `the training part of ${dataset}`;
    warnings.push({
      reason: 'DATA_REPEATED',
      message:
        `The run reads ${part} ${passes.toFixed(1)} times, each time in another order and without its last ${rest} tokens, which fill no sequence` +
        (passes > 4 ? '; beyond about four times little is learned' : ''),
    });
  }
  for (const { dataset, head } of datasets) {
    if (head?.prepared?.heldOut.tokenCount !== 0) continue;
    const not = datasets.length === 1 ? 'the model is not evaluated' : 'the model is not evaluated on it';
    warnings.push({ reason: 'HELD_OUT_EMPTY', message: `The held-out part of ${dataset} is empty: ${not}` });
  }
  return warnings;
}

function ranksOf(adapter: AdapterSettings): string {
  const ranks = adapter.targetModules.map((module) => layerMethod(adapter, module).rank);
  return [...new Set(ranks)].join(', ');
}

/**
 * Layers that would be cheaper to train in full, those of one shape together. Per token, a layer trained in full takes 6·in·out operations,
 * an adapted one 4·in·out + 6·rank·(in + out), or 2·rank·in less if A is frozen: docs/relora.md.
 */
function layersAboveBreakEven(model: LlamaConfig, adapter: AdapterSettings): string[] {
  const shapes = linearShapes(model);
  const found = new Map<string, string[]>();
  for (const module of adapter.targetModules) {
    const { inFeatures, outFeatures } = shapes[module];
    const { rank, trainsA } = layerMethod(adapter, module);
    const passes = thinPasses(trainsA).separate;
    const weights = inFeatures * outFeatures;
    const thin = passes.inputs * inFeatures + passes.outputs * outFeatures;
    const breakEven = Math.floor((2 * weights) / thin);
    if (rank <= breakEven) continue;
    const ratio = (4 * weights + rank * thin) / (6 * weights);
    const figures = `${breakEven} (there ${ratio.toFixed(2)} times the arithmetic of full-rank training)`;
    found.set(figures, [...(found.get(figures) ?? []), module]);
  }
  return [...found].map(([figures, modules]) => `${modules.join(', ')}: ${figures}`);
}
