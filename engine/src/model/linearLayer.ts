import type { TargetModule } from '../plan/runSpec.js';
import type { Parameter } from './parameter.js';

/** A linear layer of a block, y = x W, with an adapter in the adapter phase: y = x W + s (x A) B. */
export interface LinearLayer {
  /** For example `model.layers.0.self_attn.q_proj`. */
  readonly name: string;
  /** Its index among all linear layers of the model, from 0. */
  readonly index: number;
  readonly module: TargetModule;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly weight: Parameter;
  /** [out], added to y; null: no bias. */
  readonly bias: Parameter | null;
  adapter: Adapter | null;
}

export interface Adapter {
  readonly rank: number;
  readonly a: Parameter;
  readonly b: Parameter;
  /** Trainable scale g, s = tanh(g); null if s is the constant alpha / rank. */
  readonly scale: Parameter | null;
}
