import type { Scalar, Tensor } from '@tensorflow/tfjs-core';
import type { AdapterSettings, LlamaConfig } from '../plan/runSpec.js';
import type { LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';

/** Where the dropout of one micro-batch stands in a run; its masks are a pure function of it. */
export interface DropoutPlace {
  seed: number;
  step: number;
  micro: number;
}

export interface LossOptions {
  /** Multiplies the mean loss and so every gradient; 1 / micro-batches when gradients are summed. Default 1. */
  lossScale?: number;
  /** Without it nothing is dropped, whatever the adapter's settings say: evaluation. */
  dropout?: DropoutPlace;
}

/** A layer's change by a merge: Frobenius norm of s A B. */
export interface LayerDelta {
  layer: string;
  deltaNorm: number;
}

/** A merge would have made a weight infinite or NaN; no weight of the model was changed. */
export class MergeNotFinite extends Error {
  constructor(readonly layer: string) {
    super(`The adapter of ${layer} is not finite and was not merged; all weights are as they were`);
    this.name = 'MergeNotFinite';
  }
}

/**
 * A Llama model and its adapters. It lives on the tfjs backend that was current when it was made (`selectBackend`), and
 * owns its variables until `dispose`.
 */
export class Llama {
  /** By name, in the order of Hugging Face's files: embedding, blocks, final norm, head (absent when tied); adapters last. */
  readonly parameters = new Map<string, Parameter>();
  /** All linear layers of all blocks, adapted or not. */
  readonly layers: LinearLayer[] = [];

  private constructor(readonly config: LlamaConfig) {}

  /** New weights: all N(0, 0.02), norms 1. The same seed gives the same bits. */
  static create(config: LlamaConfig, seed: number): Llama {
    void seed;
    return new Llama(config);
  }

  /**
   * Weights from elsewhere, asked for by name in Hugging Face's layout (linear weights [out, in]); the returned arrays
   * are copied. Throws when one has a wrong length; nothing is left behind.
   */
  static async fromWeights(config: LlamaConfig, read: (name: string) => Promise<Float32Array>): Promise<Llama> {
    void read;
    return new Llama(config);
  }

  /** What a step trains: everything without adapters; with them embedding, norms, head and the adapters. */
  trainable(): Parameter[] {
    return [];
  }

  /** Settings of the attached adapters; null before `attachAdapters`. */
  get adapterSettings(): AdapterSettings | null {
    return null;
  }

  /**
   * Freezes and packs the weights of the target modules and gives each layer an adapter: A ~ U(-1/sqrt(in), 1/sqrt(in))
   * from the stream (seed, 'adapter', layer, restart), B = 0.
   */
  attachAdapters(settings: AdapterSettings, seed: number, restart: number): void {
    void [settings, seed, restart];
  }

  /** A drawn anew, B = 0, a trainable scale back to its initial value. Merge first, or what they learned is gone. */
  restartAdapters(seed: number, restart: number): void {
    void [seed, restart];
  }

  /**
   * W += s A B in float32 for all layers, then packs again. A and B stay as they are: restart them afterwards. Every
   * layer is checked before any weight changes; throws MergeNotFinite.
   */
  mergeAdapters(): { deltaNorm: number; byLayer: LayerDelta[] } {
    return { deltaNorm: 0, byLayer: [] };
  }

  /** W + s A B [in, out] in float32; the model is not changed. Without an adapter a copy of W. Throws MergeNotFinite. */
  mergedWeight(layer: LinearLayer): Float32Array {
    return new Float32Array(layer.inFeatures * layer.outFeatures);
  }

  /** Drops the adapters and unfreezes their layers: the model before `attachAdapters`, with the merges in it. */
  detachAdapters(): void {}

  /** To be called after writing base weights (a resumed checkpoint) while adapters are attached. */
  repackBases(): void {}

  /** Bytes held by packed copies of frozen weights, beside the float32 variables. */
  get packedBytes(): number {
    return 0;
  }

  /**
   * Mean cross-entropy in nats over targets other than -1, times lossScale. inputs and targets are [batch * time], row
   * by row. Differentiable by tfjs.
   */
  loss(inputs: Int32Array, targets: Int32Array, batch: number, time: number, options: LossOptions = {}): Scalar {
    throw new Error(`${String(inputs.length + targets.length + batch + time)} ${String(options.lossScale)}`);
  }

  /** Sum of the losses in nats and the number of targets other than -1, without gradients and without dropout. */
  sumLoss(inputs: Int32Array, targets: Int32Array, batch: number, time: number): { sum: number; count: number } {
    void [inputs, targets, batch, time];
    return { sum: 0, count: 0 };
  }

  /**
   * Loss (times lossScale) and its gradient for every trainable parameter, by name, in the order of `trainable()`. The
   * caller disposes the gradients.
   */
  valueAndGradients(
    inputs: Int32Array, targets: Int32Array, batch: number, time: number, options: LossOptions = {},
  ): { loss: number; gradients: Map<string, Tensor> } {
    void [inputs, targets, batch, time, options];
    return { loss: 0, gradients: new Map() };
  }

  /** [batch * time * vocabulary]. With `float32` from the float32 weights in float32 arithmetic, whatever the run's precision. */
  logits(
    inputs: Int32Array, batch: number, time: number, options: { precision?: 'float32' } = {},
  ): Float32Array {
    void [inputs, options];
    return new Float32Array(batch * time * this.config.vocabSize);
  }

  /** Gives back every variable and every packed weight. */
  dispose(): void {}
}
