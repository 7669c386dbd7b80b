import type { Variable } from '@tensorflow/tfjs-core';

/**
 * What a weight is in ReLoRA. `shared` (embedding, norms, head) is trained in every phase; `base` is trained in
 * full-rank phases and frozen under adapters; `adapterA`, `adapterB` and `adapterScale` exist in the adapter phase only.
 */
export type ParameterRole = 'shared' | 'base' | 'adapterA' | 'adapterB' | 'adapterScale';

/** One named weight. Names are Hugging Face's, adapters are `<layer>.lora_A`, `<layer>.lora_B`, `<layer>.lora_scale`. */
export interface Parameter {
  readonly name: string;
  readonly role: ParameterRole;
  /**
   * float32; base weights are [in, out], A is [in, rank], B is [rank, out], embedding and head are [vocabulary, hidden].
   * Always created with trainable = true for tfjs; which weights a step trains is decided by `Llama.trainable()`.
   */
  readonly variable: Variable;
  /** Grows with every change of the values, so that what was made of them can tell whether it is stale. */
  version: number;
}
