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

/** How each group is trained. Embedding, head, norms, biases and scales are AdamW's in every phase. */
export interface OptimizerMethods {
  base(phase: Phase): FullRankOptimizer;
  readonly adapters: AdapterOptimizer;
  /** Learning rate of B over that of A (LoRA+). */
  readonly bLearningRateRatio: number;
  /** s of the adapter of a layer, by the layer's name. */
  scaleOf(layer: string): number;
  /** Any weight of the model, trained or not. */
  parameter(name: string): Parameter;
  /** Of the run, for the directions of APOLLO-Mini. */
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

/** As a job has them. */
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
