import type {
  Device,
  DeviceBuffer,
  ForwardMode,
  KeyValueCache,
  ResultBuffer,
  DropoutPlace,
  StepInputs,
} from '../device/device.js';
import type { LayerGraphs } from '../plan/adapterGraphs.js';
import { headSize } from '../plan/parameters.js';
import type { AdapterSettings, LlamaConfig } from '../plan/runSpec.js';
import type { HeadPrecision } from '../plan/words.js';
import {
  AdapterSet,
  plainPlan,
  trainedLayer,
  type AdapterPlan,
  type Directions,
  type LayerDelta,
} from './adapterSet.js';
import { blocksOf, decode, differentiate, tableShape, type Decoder, type Pass } from './decoder.js';
import type { GradientBuffer } from './gradientBuffer.js';
import type { LinearLayer } from './linearLayer.js';
import { valuesOf, type Parameter } from './parameter.js';
import { rotaryAngles } from './rotaryTable.js';
import {
  embeddingName,
  finalNormName,
  givenWeight,
  headName,
  newWeight,
  weightShapes,
  type WeightShape,
} from './weights.js';

/** Sequences of one pass, row by row: [batch * time] ids and the targets to predict, -1 for none. */
export interface TokenRows {
  inputs: Int32Array;
  targets: Int32Array;
  batch: number;
  time: number;
  /** [batch * time]: where, within its sequence, the document of each position begins; absent: documents attend to each other. */
  documents?: Int32Array | null;
}

export interface GradientOptions {
  /** Multiplies the mean loss and with it every gradient: a micro-batch's weight when gradients are summed. Default 1. */
  lossScale?: number;
  /** Null: no dropout, whatever the adapter's settings say. */
  dropout?: DropoutPlace | null;
  /** Recompute the activations of each half of a block in the backward pass instead of keeping them. */
  recompute?: boolean;
  /** Default: same. */
  headPrecision?: HeadPrecision;
  /** Index of its first row among those whose losses the result keeps. */
  firstRow?: number;
  /**
   * Called during the backward pass: the gradients up to this parameter's, in the order of `backwardOrder`, are final. Only on a host, whose
   * calls are done when they return.
   */
  onFinal?: ((last: Parameter) => void) | null;
}

/** Receives the gradient [in, out] of a frozen weight as soon as it is complete. */
export type GradientWatcher = (gradient: Float32Array) => Promise<void>;

/** Called once per layer; returns the watcher of the gradient of its frozen weight, or undefined. */
export type WatcherOf = (layer: LinearLayer) => GradientWatcher | undefined;

/** A Llama model and its adapters on a device. It owns its parameters until `dispose`. */
export class Llama {
  /** By name, in the order of Hugging Face's files: embedding, blocks, final norm, head (absent if tied); adapters last. */
  readonly parameters: Map<string, Parameter>;
  /** All linear layers of all blocks, adapted or not. */
  readonly layers: readonly LinearLayer[];

  private readonly decoder: Decoder;
  private readonly head: Parameter;
  private adapters: AdapterSet | null = null;

  private constructor(
    readonly device: Device,
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
    const { maxPositionEmbeddings, ropeTheta, ropeScaling } = config;
    this.decoder = {
      device,
      config,
      angles: rotaryAngles(device, maxPositionEmbeddings, this.headDim, ropeTheta, ropeScaling),
      embedding: find(embeddingName),
      blocks,
      finalNorm: find(finalNormName),
    };
    this.head = find(config.tieWordEmbeddings ? embeddingName : headName);
  }

  /** New weights: all N(0, 0.02), norms 1. The same seed gives the same bits. */
  static create(device: Device, config: LlamaConfig, seed: number): Llama {
    return new Llama(
      device,
      config,
      weightShapes(config).map((shape) => newWeight(device, shape, seed)),
    );
  }

  /**
   * Creates a model from existing weights, requested by name, in our layout (linear weights [in, out]). Throws on a wrong length, after
   * releasing everything.
   */
  static async fromWeights(
    device: Device,
    config: LlamaConfig,
    read: (weight: WeightShape) => Promise<Float32Array>,
  ): Promise<Llama> {
    const weights: Parameter[] = [];
    try {
      for (const shape of weightShapes(config)) weights.push(givenWeight(device, shape, await read(shape)));
    } catch (error) {
      for (const { buffer } of weights) device.release(buffer);
      throw error;
    }
    return new Llama(device, config, weights);
  }

  /**
   * What a step trains: without adapters everything; with adapters embedding, norms, biases, head, and the adapters' parameters that are
   * not frozen.
   */
  trainable(): Parameter[] {
    const all = [...this.parameters.values()];
    if (this.adapters === null) return all;
    const { trainedFactors } = this.adapters.settings;
    return all.filter(({ role }) => role !== 'base' && !(role === 'adapterA' && trainedFactors === 'bOnly'));
  }

  /**
   * What a step trains, in the order in which a backward pass completes the gradients: the reverse of the forward pass, each layer with its
   * adapter. A tied head is an embedding, which is complete at the end.
   */
  backwardOrder(): Parameter[] {
    const adapters = new Map(this.layers.map(({ weight, adapter }) => [weight, adapter]));
    const trained = new Set(this.trainable());
    const own = [...this.parameters.values()].filter(({ role }) => role === 'base' || role === 'shared');
    return own
      .reverse()
      .flatMap((weight) => {
        const { a = null, b = null, scale = null } = adapters.get(weight) ?? {};
        return [weight, a, b, scale];
      })
      .filter((parameter) => parameter !== null)
      .filter((parameter) => trained.has(parameter));
  }

  /** Settings of the attached adapters; null before `attachAdapters`. */
  get adapterSettings(): AdapterSettings | null {
    return this.adapters?.settings ?? null;
  }

  /**
   * Freezes and packs all linear weights and gives each layer of the target modules an adapter: A ~ U(-1/sqrt(in), 1/sqrt(in)) from the
   * stream (seed, 'adapter', layer, restart), B = 0.
   */
  attachAdapters(
    settings: AdapterSettings,
    seed: number,
    restart: number,
    plan: AdapterPlan = plainPlan,
  ): void {
    if (this.adapters !== null) throw new Error('The model has adapters already');
    this.adapters = new AdapterSet(this.device, this.layers, settings, seed, restart, plan);
    for (const parameter of this.adapters.parameters()) this.parameters.set(parameter.name, parameter);
  }

  /**
   * Resets A to the directions, or to new random values, B to 0, and a trainable scale to its initial value. Merge first, or what the
   * adapters learned is lost.
   */
  restartAdapters(seed: number, restart: number, directions: Directions | null = null): void {
    this.attached().restart(seed, restart, directions);
  }

  /**
   * W += s A B in float32 for all layers, then packs again. A and B do not change: restart them afterwards. Every layer is checked before
   * any weight changes; throws MergeNotFinite.
   */
  async mergeAdapters(): Promise<{ deltaNorm: number; byLayer: LayerDelta[] }> {
    return await this.attached().merge();
  }

  /** Changes the weights of adapted layers by other means than a merge. */
  async changeBase(change: (weight: DeviceBuffer) => Promise<void>): Promise<void> {
    await this.attached().changeWeights(change);
  }

  /** W + s A B [in, out] in float32, without changing the model. Without an adapter a copy of W. Throws MergeNotFinite. */
  async mergedWeight(layer: LinearLayer): Promise<Float32Array> {
    const { adapter } = layer;
    if (adapter === null) return await this.valuesOf(layer.weight);
    return await this.attached().merged(layer, adapter);
  }

  /** A copy of a parameter's values. */
  valuesOf(parameter: Parameter): Promise<Float32Array> {
    return valuesOf(this.device, parameter);
  }

  /** Removes the adapters and unfreezes their layers: the model before `attachAdapters`, with later merges included. */
  detachAdapters(): void {
    for (const { name } of this.attached().parameters()) this.parameters.delete(name);
    this.attached().dispose();
    this.adapters = null;
  }

  /** From now on computes the adapted layers by other graphs; see AdapterSet. Outputs change only by rounding. */
  useGraphs(graphs: LayerGraphs): void {
    this.attached().useGraphs(graphs);
  }

  /** Computes merged bases now, which the next pass would do otherwise. */
  prepareGraphs(): void {
    this.attached().prepare();
  }

  /** Bytes of packed copies of frozen weights, in addition to the float32 weights. */
  get packedBytes(): number {
    return this.adapters?.packedBytes ?? 0;
  }

  /** Adds the losses of whole sequences to the result: without gradients and without dropout. */
  addLoss(rows: TokenRows, result: ResultBuffer): void {
    const pass = this.pass(rows);
    const { hidden } = this.decode(rows.inputs, pass);
    this.device.headCrossEntropy(result, null, this.headPass(rows, hidden, 1, 0));
    this.device.release(hidden);
    this.device.releaseDocuments(pass.documents);
  }

  /** Adds the losses of whole sequences to the result, and writes the gradients of lossScale times the mean over targets other than -1. */
  differentiate(
    rows: TokenRows,
    gradients: GradientBuffer,
    result: ResultBuffer,
    {
      lossScale = 1,
      dropout = null,
      recompute = false,
      headPrecision = 'same',
      firstRow = 0,
      onFinal = null,
    }: GradientOptions = {},
  ): void {
    const scale = lossScale / Math.max(1, countTargets(rows.targets));
    const drops = dropout !== null && (this.adapters?.settings.dropout ?? 0) > 0;
    const { batch, time, inputs, targets, documents = null } = rows;
    const given = { inputs, targets, documents, dropout: drops ? dropout : null };
    const work = ({ dropout: at, ...tokens }: StepInputs): void =>
      this.differentiateNow({ ...rows, ...tokens }, gradients, result, {
        ...{ scale, dropout: at, recompute, headPrecision, firstRow, onFinal },
      });
    // Masks of version 1 are drawn on the host.
    if (given.dropout?.version === 1) return work(given);
    const place = result.rowCount === 0 ? 0 : firstRow;
    const graphs = this.adapters?.graphs ?? null;
    const kinds = [documents !== null, drops, recompute, headPrecision === 'int8'];
    const key = [gradients.whole, result, graphs, batch, time, ...kinds, scale, place];
    this.device.repeat(key, given, work);
  }

  /**
   * Passes the gradients of frozen weights to watchers, each as soon as it is complete; it is freed when its watcher is done. Adapters are
   * left out of the pass: call it right after a merge.
   */
  async watchGradients(
    rows: TokenRows,
    { lossScale = 1, recompute = false }: Pick<GradientOptions, 'lossScale' | 'recompute'>,
    watcherOf: WatcherOf,
  ): Promise<void> {
    const { device } = this;
    const adapters = this.attached();
    const backward = recompute ? 'recomputed' : 'kept';
    const pass = { ...this.pass(rows, { backward }), layer: (layer: LinearLayer) => adapters.bare(layer) };
    const decoded = this.decode(rows.inputs, pass);
    const scale = lossScale / Math.max(1, countTargets(rows.targets));
    const dhidden = device.alloc(decoded.hidden.length, 'activation');
    const unwanted = device.alloc(this.head.buffer.length);
    const result = device.newResult(0);
    const headPass = this.headPass(rows, decoded.hidden, scale, 0);
    device.headCrossEntropy(result, { dx: dhidden, head: unwanted }, headPass);
    device.releaseResult(result);
    device.release(unwanted);
    device.release(decoded.hidden);
    const watched = new Map<LinearLayer, { watcher: GradientWatcher; buffer: DeviceBuffer }>();
    const targets = {
      of: () => null,
      layer: (layer: LinearLayer) => {
        const watcher = watcherOf(layer);
        const buffer = watcher ? device.alloc(layer.weight.buffer.length) : null;
        if (watcher && buffer) watched.set(layer, { watcher, buffer });
        return { weight: buffer, a: null, b: null, scale: null, bias: null };
      },
    };
    for (const { layers } of differentiate(this.decoder, decoded, dhidden, rows.inputs, targets, false)) {
      for (const layer of layers) {
        const found = watched.get(layer);
        if (found === undefined) continue;
        const gradient = await valuesOf(device, found);
        device.release(found.buffer);
        await found.watcher(gradient);
        watched.delete(layer);
      }
    }
    device.releaseDocuments(pass.documents);
  }

  /** [batch * time * vocabulary]. With `float32` from the float32 weights in float32 arithmetic, whatever the run's precision. */
  async logits(
    inputs: Int32Array,
    batch: number,
    time: number,
    { precision = 'run' }: { precision?: ForwardMode['precision'] } = {},
  ): Promise<Float32Array> {
    const { hidden } = this.decode(inputs, this.pass({ batch, time }, { precision }));
    return await this.logitsOf(hidden, inputs.length, 0, precision);
  }

  /** A layer's output for one row [in], including its adapter, in float32 arithmetic; without its bias. */
  async layerOutput(layer: LinearLayer, row: Float32Array): Promise<Float32Array> {
    const { device } = this;
    const [x, y] = [device.alloc(row.length), device.alloc(layer.outFeatures)];
    device.upload(x, row);
    device.layerForward(y, x, 1, this.layer(layer, null));
    const output = await valuesOf(device, { buffer: y });
    device.release(x);
    device.release(y);
    return output;
  }

  /** An empty cache for one sequence of at most `positionsMax` ids; must be released. Its memory is allocated at once. */
  newCache(positionsMax = this.config.maxPositionEmbeddings): KeyValueCache {
    const { numHiddenLayers, numKeyValueHeads: kvHeads } = this.config;
    return this.device.newCache({ kvHeads, headDim: this.headDim }, numHiddenLayers, positionsMax);
  }

  /** Computes new ids of a sequence after those in its cache; returns the logits [vocabulary] after the last of them. */
  async extend(cache: KeyValueCache, ids: Int32Array): Promise<Float32Array> {
    const time = ids.length;
    const { hidden } = this.decode(ids, this.pass({ batch: 1, time }, { cache }));
    this.device.advanceCache(cache, time);
    return await this.logitsOf(hidden, time, time - 1, 'run');
  }

  /** Releases all parameters and all packed weights. */
  dispose(): void {
    if (this.adapters !== null) this.detachAdapters();
    for (const { buffer } of this.parameters.values()) this.device.release(buffer);
    this.parameters.clear();
    this.device.release(this.decoder.angles.cos);
    this.device.release(this.decoder.angles.sin);
  }

  private differentiateNow(
    rows: TokenRows,
    gradients: GradientBuffer,
    result: ResultBuffer,
    {
      scale,
      dropout,
      recompute,
      headPrecision,
      firstRow,
      onFinal,
    }: Required<Omit<GradientOptions, 'lossScale'>> & { scale: number },
  ): void {
    const pass = this.pass(rows, { dropout, backward: recompute ? 'recomputed' : 'kept' });
    const decoded = this.decode(rows.inputs, pass);
    const headPass = { ...this.headPass(rows, decoded.hidden, scale, firstRow), precision: headPrecision };
    const dhidden = this.device.alloc(decoded.hidden.length, 'activation');
    this.device.headCrossEntropy(result, { dx: dhidden, head: gradients.of(this.head)! }, headPass);
    this.device.release(decoded.hidden);
    const isTied = this.config.tieWordEmbeddings;
    if (!isTied) onFinal?.(this.head);
    const targets = {
      of: (parameter: Parameter) => gradients.of(parameter),
      layer: ({ weight, adapter, bias }: LinearLayer) => ({
        weight: gradients.of(weight),
        a: gradients.of(adapter && adapter.a),
        b: gradients.of(adapter && adapter.b),
        scale: gradients.of(adapter && adapter.scale),
        bias: gradients.of(bias),
      }),
    };
    for (const { norm } of differentiate(this.decoder, decoded, dhidden, rows.inputs, targets, isTied))
      onFinal?.(norm);
    onFinal?.(this.decoder.embedding);
    this.device.releaseDocuments(pass.documents);
  }

  private get headDim(): number {
    return headSize(this.config);
  }

  private attached(): AdapterSet {
    if (this.adapters === null) throw new Error('The model has no adapters');
    return this.adapters;
  }

  private layer(layer: LinearLayer, dropout: DropoutPlace | null) {
    return this.adapters === null ? trainedLayer(layer) : this.adapters.layer(layer, dropout);
  }

  /** The caller releases the pass's documents if it gives any. */
  private pass(
    { batch, time, documents = null }: Pick<TokenRows, 'batch' | 'time' | 'documents'>,
    {
      dropout = null,
      precision = 'run',
      backward = 'none',
      cache = null,
    }: Partial<Pick<Pass, 'precision' | 'backward' | 'cache'>> & { dropout?: DropoutPlace | null } = {},
  ): Pass {
    return {
      batch,
      time,
      precision,
      backward,
      cache,
      documents: documents && this.device.newDocuments(documents, time),
      layer: (layer) => this.layer(layer, dropout),
    };
  }

  private decode(ids: Int32Array, pass: Pass) {
    const { batch, time, cache } = pass;
    const { positionCount } = this.decoder.angles;
    const end = (cache?.length ?? 0) + time;
    if (ids.length !== batch * time) throw new Error(`Expected ${batch} x ${time} ids, not ${ids.length}`);
    if (end > positionCount)
      throw new Error(`Sequences of ${end} ids do not fit the model's ${positionCount} positions`);
    return decode(this.decoder, ids, pass);
  }

  private headPass({ targets }: TokenRows, x: DeviceBuffer, scale: number, firstRow: number) {
    const shape = tableShape(this.config, targets.length);
    return { shape, x, head: this.head.buffer, targets, scale, firstRow, precision: 'same' as const };
  }

  /** Logits of the hidden states from `firstRow` on; releases the hidden states. */
  private async logitsOf(
    hidden: DeviceBuffer,
    rows: number,
    firstRow: number,
    precision: ForwardMode['precision'],
  ): Promise<Float32Array> {
    const { device, config } = this;
    const buffer = device.alloc((rows - firstRow) * config.vocabSize);
    const pass = { shape: tableShape(config, rows), x: hidden, head: this.head.buffer, firstRow };
    device.headLogits(buffer, pass, precision);
    const logits = await valuesOf(device, { buffer });
    device.release(buffer);
    device.release(hidden);
    return logits;
  }
}

export function countTargets(targets: Int32Array): number {
  let count = 0;
  for (const target of targets) if (target !== -1) count++;
  return count;
}
