import {
  dispose,
  slice,
  tidy,
  variableGrads,
  type Scalar,
  type Tensor,
  type Tensor2D,
} from '@tensorflow/tfjs-core';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative } from '../backend/nativeBackend.js';
import { causalAttention, type AttentionShape } from '../ops/causalAttention.js';
import { headCrossEntropy, headLossSum } from '../ops/headCrossEntropy.js';
import { headLogits } from '../ops/headLogits.js';
import { linear } from '../ops/linear.js';
import { RotaryTable } from '../ops/rotary.js';
import type { LayerGraphs } from '../plan/adapterGraphs.js';
import type { AdapterSettings, LlamaConfig } from '../plan/runSpec.js';
import {
  AdapterSet,
  plainPlan,
  type AdapterPlan,
  type Directions,
  type DropoutPlace,
  type LayerDelta,
  type WatcherOf,
} from './adapterSet.js';
import { blocksOf, decode, type Decoder, type Pass } from './decoder.js';
import { KeyValueCache } from './keyValueCache.js';
import type { LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';
import {
  asMatrix,
  embeddingName,
  finalNormName,
  givenWeight,
  headName,
  newWeight,
  weightShapes,
  type WeightShape,
} from './weights.js';

export interface LossOptions {
  /** Multiplies the mean loss and so every gradient; 1 / micro-batches when gradients are summed. Default 1. */
  lossScale?: number | undefined;
  /** Without it nothing is dropped, whatever the adapter's settings say: evaluation. */
  dropout?: DropoutPlace;
  /** Make the activations of each half of a block again in the backward pass instead of keeping them. */
  recompute?: boolean | undefined;
  /** Without adapters, but with the gradients of frozen weights shown. */
  watcherOf?: WatcherOf | undefined;
}

/**
 * A Llama model and its adapters. It lives on the tfjs backend that was current when it was made (`selectBackend`), and
 * owns its variables until `dispose`.
 */
export class Llama {
  /** By name, in the order of Hugging Face's files: embedding, blocks, final norm, head (absent when tied); adapters last. */
  readonly parameters: Map<string, Parameter>;
  /** All linear layers of all blocks, adapted or not. */
  readonly layers: readonly LinearLayer[];

  private readonly decoder: Decoder;
  private readonly head: Tensor2D;
  private adapters: AdapterSet | null = null;

  private constructor(
    readonly config: LlamaConfig,
    weights: Parameter[],
  ) {
    this.parameters = new Map(weights.map((weight) => [weight.name, weight]));
    const find = (name: string): Parameter => {
      const found = this.parameters.get(name);
      if (found === undefined) throw new Error(`The model has no parameter ${name}`);
      return found;
    };
    const blocks = blocksOf(config, find);
    this.layers = blocks.flatMap(({ linear }) => Object.values(linear));
    this.decoder = {
      config,
      rotaryTable: new RotaryTable(config.maxPositionEmbeddings, this.headDim, config.ropeTheta),
      embedding: find(embeddingName),
      blocks,
      finalNorm: find(finalNormName),
    };
    this.head = asMatrix(find(config.tieWordEmbeddings ? embeddingName : headName).variable);
  }

  /** New weights: all N(0, 0.02), norms 1. The same seed gives the same bits. */
  static create(config: LlamaConfig, seed: number): Llama {
    return new Llama(
      config,
      weightShapes(config).map((shape) => newWeight(shape, seed)),
    );
  }

  /**
   * Weights from elsewhere, asked for by name, laid out as here (linear weights [in, out]); the model takes over the
   * returned arrays. Throws when one has a wrong length; nothing is left behind.
   */
  static async fromWeights(
    config: LlamaConfig,
    read: (weight: WeightShape) => Promise<Float32Array>,
  ): Promise<Llama> {
    const weights: Parameter[] = [];
    try {
      for (const shape of weightShapes(config)) weights.push(givenWeight(shape, await read(shape)));
    } catch (error) {
      dispose(weights.map(({ variable }) => variable));
      throw error;
    }
    return new Llama(config, weights);
  }

  /** What a step trains: everything without adapters; with them embedding, norms, head, and of the adapters what is not frozen. */
  trainable(): Parameter[] {
    const all = [...this.parameters.values()];
    if (this.adapters === null) return all;
    const { trainedFactors } = this.adapters.settings;
    return all.filter(({ role }) => role !== 'base' && !(role === 'adapterA' && trainedFactors === 'bOnly'));
  }

  /** Settings of the attached adapters; null before `attachAdapters`. */
  get adapterSettings(): AdapterSettings | null {
    return this.adapters?.settings ?? null;
  }

  /**
   * Freezes and packs all linear weights and gives each layer of the target modules an adapter: A ~ U(-1/sqrt(in),
   * 1/sqrt(in)) from the stream (seed, 'adapter', layer, restart), B = 0.
   */
  attachAdapters(
    settings: AdapterSettings,
    seed: number,
    restart: number,
    plan: AdapterPlan = plainPlan,
  ): void {
    if (this.adapters !== null) throw new Error('The model has adapters already');
    this.adapters = new AdapterSet(this.layers, settings, seed, restart, plan);
    for (const parameter of this.adapters.parameters()) this.parameters.set(parameter.name, parameter);
  }

  /**
   * A from the directions, or drawn anew, B = 0, a trainable scale back to its initial value. Merge first, or what they learned
   * is gone.
   */
  restartAdapters(seed: number, restart: number, directions: Directions | null = null): void {
    this.attached().restart(seed, restart, directions);
  }

  /**
   * W += s A B in float32 for all layers, then packs again. A and B stay as they are: restart them afterwards. Every
   * layer is checked before any weight changes; throws MergeNotFinite.
   */
  mergeAdapters(): { deltaNorm: number; byLayer: LayerDelta[] } {
    return this.attached().merge();
  }

  /** W + s A B [in, out] in float32; the model is not changed. Without an adapter a copy of W. Throws MergeNotFinite. */
  mergedWeight(layer: LinearLayer): Float32Array {
    const { adapter } = layer;
    if (adapter === null) return Float32Array.from(layer.weight.variable.dataSync());
    return valuesOf(() => this.attached().merged(layer, adapter).merged);
  }

  /** Drops the adapters and unfreezes their layers: the model before `attachAdapters`, with the merges in it. */
  detachAdapters(): void {
    for (const { name } of this.attached().parameters()) this.parameters.delete(name);
    this.attached().dispose();
    this.adapters = null;
  }

  /** Computes the adapted layers by other graphs from now on; see AdapterSet. Outputs change by rounding alone. */
  useGraphs(graphs: LayerGraphs): void {
    this.attached().useGraphs(graphs);
  }

  /** Makes now what the next pass would make once a step: merged bases. */
  prepareGraphs(): void {
    const native = currentNative();
    if (native !== null) this.attached().prepare(native);
  }

  /** Bytes held by packed copies of frozen weights, beside the float32 variables. */
  get packedBytes(): number {
    return this.adapters?.packedBytes ?? 0;
  }

  /**
   * Mean cross-entropy in nats over targets other than -1, times lossScale. inputs and targets are [batch * time], row
   * by row. Differentiable by tfjs.
   */
  loss(
    inputs: Int32Array,
    targets: Int32Array,
    batch: number,
    time: number,
    options: LossOptions = {},
  ): Scalar {
    const scale = (options.lossScale ?? 1) / Math.max(1, countTargets(targets));
    return tidy(() => {
      const pass = this.pass(batch, time, {
        dropout: options.dropout,
        isWhole: true,
        recompute: options.recompute,
        watcherOf: options.watcherOf,
      });
      const hidden = this.hidden(inputs, pass);
      return headCrossEntropy(hidden, this.head, targets, scale);
    });
  }

  /** Sum of the losses in nats and the number of targets other than -1, without gradients and without dropout. */
  sumLoss(
    inputs: Int32Array,
    targets: Int32Array,
    batch: number,
    time: number,
  ): { sum: number; count: number } {
    let sum = 0;
    tidy(() => {
      sum = headLossSum(this.hidden(inputs, this.pass(batch, time, { isWhole: true })), this.head, targets);
    });
    return { sum, count: countTargets(targets) };
  }

  /**
   * Loss (times lossScale) and its gradient for every trainable parameter, by name, in the order of `trainable()`. The
   * caller disposes the gradients.
   */
  valueAndGradients(
    inputs: Int32Array,
    targets: Int32Array,
    batch: number,
    time: number,
    options: LossOptions = {},
  ): { loss: number; gradients: Map<string, Tensor> } {
    const trainable = this.trainable();
    const differentiate = () =>
      variableGrads(
        () => this.loss(inputs, targets, batch, time, options),
        trainable.map(({ variable }) => variable),
      );
    const native = currentNative();
    const { value, grads } = native === null ? differentiate() : native.withOwnedGradients(differentiate);
    const loss = value.dataSync()[0] ?? Number.NaN;
    value.dispose();
    const gradients = new Map<string, Tensor>();
    for (const { name, variable } of trainable) {
      const gradient = grads[variable.name];
      if (!gradient) throw new Error(`The loss does not depend on ${name}`);
      gradients.set(name, gradient);
    }
    return { loss, gradients };
  }

  /**
   * Shows the gradients of frozen weights, each as soon as it is there and no longer than its watcher looks at it. Adapters are
   * left out of the pass: for the moment after a merge.
   */
  watchGradients(
    inputs: Int32Array,
    targets: Int32Array,
    batch: number,
    time: number,
    { lossScale, recompute }: Pick<LossOptions, 'lossScale' | 'recompute'>,
    watcherOf: WatcherOf,
  ): void {
    this.attached();
    // The first weight that any gradient passes on its way through all layers, and a small one.
    const first = this.decoder.blocks[0]!.inputNorm.variable;
    const differentiate = () =>
      variableGrads(
        () => this.loss(inputs, targets, batch, time, { lossScale, recompute, watcherOf }),
        [first],
      );
    const native = currentNative();
    const { value, grads } = native === null ? differentiate() : native.withOwnedGradients(differentiate);
    value.dispose();
    dispose(grads);
  }

  /** [batch * time * vocabulary]. With `float32` from the float32 weights in float32 arithmetic, whatever the run's precision. */
  logits(
    inputs: Int32Array,
    batch: number,
    time: number,
    options: { precision?: 'float32' } = {},
  ): Float32Array {
    const { precision } = options;
    return valuesOf(() =>
      headLogits(this.hidden(inputs, this.pass(batch, time, { precision })), this.head, precision),
    );
  }

  /** An empty cache for one sequence of at most so many ids. Its memory is taken at once. */
  newCache(positionsMax = this.config.maxPositionEmbeddings): KeyValueCache {
    const { numHiddenLayers, numKeyValueHeads } = this.config;
    return new KeyValueCache(numHiddenLayers, positionsMax, numKeyValueHeads * this.headDim);
  }

  /** Computes new ids of a sequence behind those in its cache; gives the logits [vocabulary] after the last of them. */
  extend(cache: KeyValueCache, ids: Int32Array): Float32Array {
    const time = ids.length;
    const shape = this.attentionShape(1, time);
    const pass: Pass = {
      ...this.pass(1, time, { firstPosition: cache.length }),
      attend: (block, q, k, v) => {
        cache.append(block, k, v);
        return cache.length === 0 ? causalAttention(q, k, v, shape) : cache.attend(block, q, shape);
      },
    };
    const logits = valuesOf(() => {
      const last = slice(this.hidden(ids, pass), [time - 1, 0]);
      return headLogits(last, this.head);
    });
    cache.advance(time);
    return logits;
  }

  /** Gives back every variable and every packed weight. */
  dispose(): void {
    if (this.adapters !== null) this.detachAdapters();
    dispose([...this.parameters.values()].map(({ variable }) => variable));
    this.parameters.clear();
  }

  private get headDim(): number {
    return this.config.hiddenSize / this.config.numAttentionHeads;
  }

  private attached(): AdapterSet {
    if (this.adapters === null) throw new Error('The model has no adapters');
    return this.adapters;
  }

  private attentionShape(batch: number, time: number): AttentionShape {
    const { numAttentionHeads, numKeyValueHeads } = this.config;
    return { batch, time, heads: numAttentionHeads, kvHeads: numKeyValueHeads, headDim: this.headDim };
  }

  private hidden(ids: Int32Array, pass: Pass): Tensor2D {
    const { batch, time, firstPosition } = pass;
    const { positionCount } = this.decoder.rotaryTable;
    const end = firstPosition + time;
    if (ids.length !== batch * time) throw new Error(`Expected ${batch} x ${time} ids, not ${ids.length}`);
    if (end > positionCount)
      throw new Error(`Sequences of ${end} ids do not fit the model's ${positionCount} positions`);
    return decode(this.decoder, ids, pass);
  }

  /** Null where a pass has to go op by op: on other backends, and with what the fused halves do not know. */
  private fusedHalves({ dropout, recompute = false, watcherOf }: PassOptions): Pass['fused'] {
    const native = currentNative();
    const settings = watcherOf === undefined ? this.adapterSettings : null;
    const drops = dropout !== undefined && settings !== null && settings.dropout > 0;
    if (native === null || drops || settings?.trainableScale) return null;
    return {
      settings: { native, epsilon: this.config.rmsNormEps, precision: native.precision, recompute },
      linear: (layer) =>
        watcherOf === undefined
          ? (this.adapters?.fused(native, layer) ?? { trained: asMatrix(layer.weight.variable) })
          : this.attached().fusedWatched(layer, watcherOf(layer)),
    };
  }

  private pass(batch: number, time: number, options: PassOptions): Pass {
    const shape = this.attentionShape(batch, time);
    const { precision, dropout, watcherOf } = options;
    return {
      batch,
      time,
      firstPosition: options.firstPosition ?? 0,
      fused: options.isWhole ? this.fusedHalves(options) : null,
      linear: (layer, x) =>
        watcherOf === undefined
          ? (this.adapters?.apply(layer, x, dropout, precision) ??
            linear(x, asMatrix(layer.weight.variable), precision))
          : this.attached().applyWatched(layer, x, watcherOf(layer)),
      attend: (_, q, k, v) => causalAttention(q, k, v, shape, precision),
    };
  }
}

interface PassOptions {
  /** Whole sequences in the precision of the run: training and evaluation, which fused halves can do. */
  isWhole?: boolean;
  recompute?: boolean | undefined;
  firstPosition?: number;
  dropout?: DropoutPlace | undefined;
  precision?: ProductPrecision | undefined;
  watcherOf?: WatcherOf | undefined;
}

function countTargets(targets: Int32Array): number {
  let count = 0;
  for (const target of targets) if (target !== -1) count++;
  return count;
}

function valuesOf(compute: () => Tensor): Float32Array {
  const result = tidy(compute);
  const values = result.dataSync<'float32'>();
  result.dispose();
  return values;
}
