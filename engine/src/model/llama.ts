import { dispose, slice, tensor2d, tidy, variableGrads, type Scalar, type Tensor, type Tensor2D } from '@tensorflow/tfjs-core';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative } from '../backend/nativeBackend.js';
import { EngineError } from '../engineError.js';
import { causalAttention, type AttentionShape } from '../ops/causalAttention.js';
import { FrozenBase } from '../ops/frozenBase.js';
import { headCrossEntropy, headLossSum } from '../ops/headCrossEntropy.js';
import { headLogits } from '../ops/headLogits.js';
import { linear } from '../ops/linear.js';
import { loraLinear } from '../ops/loraLinear.js';
import { mergeAdapter } from '../ops/mergeAdapter.js';
import { RotaryTable } from '../ops/rotary.js';
import { linearShapes } from '../plan/parameters.js';
import { targetModules, type AdapterSettings, type LlamaConfig, type TargetModule } from '../plan/runSpec.js';
import { Random } from '../random.js';
import { adapterScale, newAdapter, restartAdapter } from './adapters.js';
import { decode, type Block, type Pass } from './decoder.js';
import { KeyValueCache } from './keyValueCache.js';
import type { Adapter, LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';
import { asMatrix, blockNames, embeddingName, fileWeight, finalNormName, headName, newWeight, weightShapes } from './weights.js';

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
export class MergeNotFinite extends EngineError {
  constructor(readonly layer: string) {
    super('MERGE_NOT_FINITE', `The adapter of ${layer} is not finite and was not merged; all weights are as they were`);
  }
}

/**
 * A Llama model and its adapters. It lives on the tfjs backend that was current when it was made (`selectBackend`), and
 * owns its variables until `dispose`.
 */
export class Llama {
  /** By name, in the order of Hugging Face's files: embedding, blocks, final norm, head (absent when tied); adapters last. */
  readonly parameters: Map<string, Parameter>;
  /** All linear layers of all blocks, adapted or not. */
  readonly layers: LinearLayer[] = [];

  private readonly blocks: Block[] = [];
  private readonly rotaryTable: RotaryTable;
  private settings: AdapterSettings | null = null;
  /** Packed weights of all linear layers while adapters are attached. */
  private readonly bases = new Map<LinearLayer, FrozenBase>();

  private constructor(readonly config: LlamaConfig, weights: Parameter[]) {
    this.parameters = new Map(weights.map((weight) => [weight.name, weight]));
    const shapes = linearShapes(config);
    for (let index = 0; index < config.numHiddenLayers; index++) {
      const linears = targetModules.map((module): [TargetModule, LinearLayer] => {
        const name = blockNames.layerName(index, module);
        return [module, { name, module, ...shapes[module], weight: this.parameter(`${name}.weight`), adapter: null }];
      });
      this.layers.push(...linears.map(([, layer]) => layer));
      this.blocks.push({
        inputNorm: this.parameter(blockNames.normName(index, blockNames.inputNorm)),
        attentionNorm: this.parameter(blockNames.normName(index, blockNames.attentionNorm)),
        linear: Object.fromEntries(linears) as Record<TargetModule, LinearLayer>,
      });
    }
    this.rotaryTable = new RotaryTable(config.maxPositionEmbeddings, this.headDim, config.ropeTheta);
  }

  /** New weights: all N(0, 0.02), norms 1. The same seed gives the same bits. */
  static create(config: LlamaConfig, seed: number): Llama {
    return new Llama(config, weightShapes(config).map((shape) => newWeight(shape, seed)));
  }

  /**
   * Weights from elsewhere, asked for by name in Hugging Face's layout (linear weights [out, in]); the returned arrays
   * are copied. Throws when one has a wrong length; nothing is left behind.
   */
  static async fromWeights(config: LlamaConfig, read: (name: string) => Promise<Float32Array>): Promise<Llama> {
    const weights: Parameter[] = [];
    try {
      for (const shape of weightShapes(config)) weights.push(fileWeight(shape, await read(shape.name)));
    } catch (error) {
      dispose(weights.map(({ variable }) => variable));
      throw error;
    }
    return new Llama(config, weights);
  }

  /** What a step trains: everything without adapters; with them embedding, norms, head and the adapters. */
  trainable(): Parameter[] {
    const all = [...this.parameters.values()];
    return this.settings === null ? all : all.filter(({ role }) => role !== 'base');
  }

  /** Settings of the attached adapters; null before `attachAdapters`. */
  get adapterSettings(): AdapterSettings | null {
    return this.settings;
  }

  /**
   * Freezes and packs all linear weights and gives each layer of the target modules an adapter: A ~ U(-1/sqrt(in),
   * 1/sqrt(in)) from the stream (seed, 'adapter', layer, restart), B = 0.
   */
  attachAdapters(settings: AdapterSettings, seed: number, restart: number): void {
    if (this.settings !== null) throw new Error('The model has adapters already');
    this.settings = settings;
    for (const layer of this.layers) {
      this.bases.set(layer, new FrozenBase(asMatrix(layer.weight.variable)));
      if (!settings.targetModules.includes(layer.module)) continue;
      layer.adapter = newAdapter(layer, settings, seed, restart);
      for (const parameter of partsOf(layer.adapter)) this.parameters.set(parameter.name, parameter);
    }
  }

  /** A drawn anew, B = 0, a trainable scale back to its initial value. Merge first, or what they learned is gone. */
  restartAdapters(seed: number, restart: number): void {
    for (const { layer, adapter, settings } of this.adapted()) restartAdapter(layer, adapter, settings, seed, restart);
  }

  /**
   * W += s A B in float32 for all layers, then packs again. A and B stay as they are: restart them afterwards. Every
   * layer is checked before any weight changes; throws MergeNotFinite.
   */
  mergeAdapters(): { deltaNorm: number; byLayer: LayerDelta[] } {
    const byLayer: LayerDelta[] = [];
    // Merged twice, first only to look: keeping all merged weights until the last is checked would double the model.
    for (const { layer } of this.adapted()) {
      const { merged, deltaNorm } = this.merge(layer);
      merged.dispose();
      byLayer.push({ layer: layer.name, deltaNorm });
    }
    for (const { layer } of this.adapted()) {
      const { merged } = this.merge(layer);
      layer.weight.variable.assign(merged);
      merged.dispose();
      this.bases.get(layer)?.pack();
    }
    return { deltaNorm: Math.hypot(...byLayer.map(({ deltaNorm }) => deltaNorm)), byLayer };
  }

  /** W + s A B [in, out] in float32; the model is not changed. Without an adapter a copy of W. Throws MergeNotFinite. */
  mergedWeight(layer: LinearLayer): Float32Array {
    if (layer.adapter === null) return Float32Array.from(layer.weight.variable.dataSync());
    const { merged } = this.merge(layer);
    const values = merged.dataSync<'float32'>();
    merged.dispose();
    return values;
  }

  /** Drops the adapters and unfreezes their layers: the model before `attachAdapters`, with the merges in it. */
  detachAdapters(): void {
    for (const { layer, adapter } of this.adapted()) {
      for (const { name, variable } of partsOf(adapter)) {
        this.parameters.delete(name);
        variable.dispose();
      }
      layer.adapter = null;
    }
    for (const base of this.bases.values()) base.release();
    this.bases.clear();
    this.settings = null;
  }

  /** To be called after writing base weights (a resumed checkpoint) while adapters are attached. */
  repackBases(): void {
    for (const base of this.bases.values()) base.pack();
  }

  /** Bytes held by packed copies of frozen weights, beside the float32 variables. */
  get packedBytes(): number {
    let bytes = 0;
    for (const base of this.bases.values()) bytes += base.bytes;
    return bytes;
  }

  /**
   * Mean cross-entropy in nats over targets other than -1, times lossScale. inputs and targets are [batch * time], row
   * by row. Differentiable by tfjs.
   */
  loss(inputs: Int32Array, targets: Int32Array, batch: number, time: number, options: LossOptions = {}): Scalar {
    const scale = (options.lossScale ?? 1) / Math.max(1, countTargets(targets));
    return tidy(() => {
      const hidden = this.hidden(inputs, this.pass(batch, time, { dropout: options.dropout }));
      return headCrossEntropy(hidden, this.head, targets, scale);
    });
  }

  /** Sum of the losses in nats and the number of targets other than -1, without gradients and without dropout. */
  sumLoss(inputs: Int32Array, targets: Int32Array, batch: number, time: number): { sum: number; count: number } {
    let sum = 0;
    tidy(() => {
      sum = headLossSum(this.hidden(inputs, this.pass(batch, time, {})), this.head, targets);
    });
    return { sum, count: countTargets(targets) };
  }

  /**
   * Loss (times lossScale) and its gradient for every trainable parameter, by name, in the order of `trainable()`. The
   * caller disposes the gradients.
   */
  valueAndGradients(
    inputs: Int32Array, targets: Int32Array, batch: number, time: number, options: LossOptions = {},
  ): { loss: number; gradients: Map<string, Tensor> } {
    const trainable = this.trainable();
    const differentiate = () =>
      variableGrads(() => this.loss(inputs, targets, batch, time, options), trainable.map(({ variable }) => variable));
    const native = currentNative();
    const { value, grads } = native === null ? differentiate() : native.withOwnedGradients(differentiate);
    const loss = value.dataSync()[0] ?? Number.NaN;
    value.dispose();
    const gradients = new Map<string, Tensor>();
    for (const { name, variable } of trainable) {
      const gradient = grads[variable.name];
      if (gradient == null) throw new Error(`The loss does not depend on ${name}`);
      gradients.set(name, gradient);
    }
    return { loss, gradients };
  }

  /** [batch * time * vocabulary]. With `float32` from the float32 weights in float32 arithmetic, whatever the run's precision. */
  logits(
    inputs: Int32Array, batch: number, time: number, options: { precision?: 'float32' } = {},
  ): Float32Array {
    const { precision } = options;
    return valuesOf(() => headLogits(this.hidden(inputs, this.pass(batch, time, { precision })), this.head, precision));
  }

  /** An empty cache for one sequence of this model. */
  newCache(): KeyValueCache {
    const { numHiddenLayers, numKeyValueHeads, maxPositionEmbeddings } = this.config;
    return new KeyValueCache(numHiddenLayers, maxPositionEmbeddings, numKeyValueHeads * this.headDim);
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
    for (const base of this.bases.values()) base.release();
    this.bases.clear();
    dispose([...this.parameters.values()].map(({ variable }) => variable));
    this.parameters.clear();
  }

  private get headDim(): number {
    return this.config.hiddenSize / this.config.numAttentionHeads;
  }

  private get head(): Tensor2D {
    return asMatrix(this.parameter(this.config.tieWordEmbeddings ? embeddingName : headName).variable);
  }

  private parameter(name: string): Parameter {
    const found = this.parameters.get(name);
    if (found === undefined) throw new Error(`The model has no parameter ${name}`);
    return found;
  }

  private *adapted(): Generator<{ layer: LinearLayer; adapter: Adapter; settings: AdapterSettings }> {
    for (const layer of this.layers) {
      if (layer.adapter !== null && this.settings !== null) yield { layer, adapter: layer.adapter, settings: this.settings };
    }
  }

  private merge(layer: LinearLayer): { merged: Tensor2D; deltaNorm: number } {
    if (layer.adapter === null || this.settings === null) throw new Error(`${layer.name} has no adapter`);
    const { a, b } = layer.adapter;
    const scale = adapterScale(layer.adapter, this.settings);
    const { merged, finite, deltaNorm } = mergeAdapter(
      asMatrix(layer.weight.variable), asMatrix(a.variable), asMatrix(b.variable), scale,
    );
    if (!finite) {
      merged.dispose();
      throw new MergeNotFinite(layer.name);
    }
    return { merged, deltaNorm };
  }

  private attentionShape(batch: number, time: number): AttentionShape {
    const { numAttentionHeads, numKeyValueHeads } = this.config;
    return { batch, time, heads: numAttentionHeads, kvHeads: numKeyValueHeads, headDim: this.headDim };
  }

  private hidden(ids: Int32Array, pass: Pass): Tensor2D {
    const { batch, time, firstPosition } = pass;
    const end = firstPosition + time;
    if (ids.length !== batch * time) throw new Error(`Expected ${batch} x ${time} ids, not ${ids.length}`);
    if (end > this.rotaryTable.positionCount) {
      throw new Error(`Sequences of ${end} ids do not fit the model's ${this.rotaryTable.positionCount} positions`);
    }
    const { config, rotaryTable, blocks } = this;
    return decode(
      { config, rotaryTable, blocks, embedding: this.parameter(embeddingName), finalNorm: this.parameter(finalNormName) },
      ids,
      pass,
    );
  }

  private pass(
    batch: number, time: number,
    options: { firstPosition?: number; dropout?: DropoutPlace | undefined; precision?: ProductPrecision | undefined },
  ): Pass {
    const shape = this.attentionShape(batch, time);
    const { precision, dropout } = options;
    return {
      batch,
      time,
      firstPosition: options.firstPosition ?? 0,
      linear: (layer, x) => this.applyLinear(layer, x, dropout, precision),
      attend: (_, q, k, v) => causalAttention(q, k, v, shape, precision),
    };
  }

  private applyLinear(
    layer: LinearLayer, x: Tensor2D, dropout: DropoutPlace | undefined, precision: ProductPrecision | undefined,
  ): Tensor2D {
    const base = this.bases.get(layer);
    if (base === undefined || this.settings === null) return linear(x, asMatrix(layer.weight.variable), precision);
    const { adapter } = layer;
    const pass = adapter === null ? null : {
      a: asMatrix(adapter.a.variable),
      b: asMatrix(adapter.b.variable),
      scale: adapter.scale === null ? this.settings.alpha / this.settings.rank : (adapter.scale.variable as unknown as Scalar),
      mask: dropout === undefined ? null : this.dropoutMask(layer, x, this.settings.dropout, dropout),
    };
    return loraLinear(x, base, pass, precision);
  }

  private dropoutMask(layer: LinearLayer, x: Tensor2D, dropped: number, { seed, step, micro }: DropoutPlace): Tensor2D | null {
    if (dropped === 0) return null;
    const mask = new Float32Array(x.size);
    Random.forStream(seed, 'dropout', step, micro, layer.name).fillDropoutMask(mask, dropped);
    return tensor2d(mask, x.shape);
  }
}

function partsOf({ a, b, scale }: Adapter): Parameter[] {
  return scale === null ? [a, b] : [a, b, scale];
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
