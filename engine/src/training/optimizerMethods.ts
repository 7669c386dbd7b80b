import type { Parameter, ParameterRole } from '../model/parameter.js';
import { layerMethod } from '../plan/layerMethod.js';
import type { AdapterOptimizer, FullRankOptimizer, Phase, RunSpec, TargetModule } from '../plan/runSpec.js';

/** `base` exists in full-rank phases only, `adapter` is A and B, `scale` the trainable scales. */
export type MomentGroup = 'shared' | 'base' | 'adapter' | 'scale';

export const groupOf: Readonly<Record<ParameterRole, MomentGroup>> = {
  shared: 'shared',
  base: 'base',
  adapterA: 'adapter',
  adapterB: 'adapter',
  adapterScale: 'scale',
};

/** Optimizer of each group. Embedding, head, norms, biases and scales use AdamW in every phase. */
export interface OptimizerMethods {
  base(phase: Phase): FullRankOptimizer;
  readonly adapters: AdapterOptimizer;
  /** Learning rate of B over that of A (LoRA+). */
  readonly bLearningRateRatio: number;
  /** s of a layer's adapter, by layer name. */
  scaleOf(layer: string): number;
  /** Any weight of the model, trained or not. */
  parameter(name: string): Parameter;
  /** Seed of the run, for the directions of APOLLO-Mini. */
  readonly seed: number;
}

/** AdamW for everything. */
export const plainMethods: OptimizerMethods = {
  base: () => 'adamw',
  adapters: 'adamw',
  bLearningRateRatio: 1,
  scaleOf: () => 1,
  parameter(name) {
    throw new Error(`No weight ${name}`);
  },
  seed: 0,
};

/** The methods that a job specifies. */
export function methodsOf(
  { optimizer, warmStart, adapter, kind, seed }: RunSpec,
  parameters: ReadonlyMap<string, Parameter>,
): OptimizerMethods {
  return {
    base(phase) {
      if (phase === 'warmStart') return warmStart.optimizer;
      return kind === 'fullRank' ? optimizer.fullRankOptimizer : adapter!.fullRankOptimizer;
    },
    adapters: adapter?.adapterOptimizer ?? 'adamw',
    bLearningRateRatio: adapter?.bLearningRateRatio ?? 1,
    scaleOf: (layer) => layerMethod(adapter!, layer.slice(layer.lastIndexOf('.') + 1) as TargetModule).scale,
    parameter(name) {
      const found = parameters.get(name);
      if (found === undefined) throw new Error(`The model has no weight ${name}`);
      return found;
    },
    seed,
  };
}
