import { tensor2d, type Scalar, type Tensor2D, type Variable } from '@tensorflow/tfjs-core';
import type { ProductPrecision } from '../backend/nativeAddon.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';
import { EngineError } from '../engineError.js';
import { FrozenBase } from '../ops/frozenBase.js';
import type { FusedLinear, GradientWatcher } from '../ops/halfLayers.js';
import { loraLinear, plainFrozenLinear, type AdapterPass } from '../ops/loraLinear.js';
import { mergeAdapter } from '../ops/mergeAdapter.js';
import { arePackedOnce, separateGraphs, type LayerGraphs } from '../plan/adapterGraphs.js';
import { layerMethod } from '../plan/layerMethod.js';
import type { AdapterSettings } from '../plan/runSpec.js';
import { Random } from '../random.js';
import { adapterScale, drawA, newAdapter, restartAdapter } from './adapters.js';
import type { Adapter, LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';
import { asMatrix } from './weights.js';

/** How the layers of the adapter phase are computed and held; nothing of it changes the function. */
export interface AdapterPlan {
  graphs: LayerGraphs;
  /**
   * Folder whose disk holds the float32 weights that merges are added to, so that only their packed form takes memory;
   * null keeps them in memory. Native only.
   */
  masterFolder: string | null;
}

export const plainPlan: AdapterPlan = {
  graphs: separateGraphs,
  masterFolder: null,
};

/** Merged graphs read the float32 weights at every step: then they stay in memory. */
export function adapterPlan(graphs: LayerGraphs, folder: string): AdapterPlan {
  return { graphs, masterFolder: arePackedOnce(graphs) ? folder : null };
}

/** Where the dropout of one micro-batch stands in a run; its masks are a pure function of it. */
export interface DropoutPlace {
  seed: number;
  step: number;
  micro: number;
}

/** Where the A of a layer begins in a new cycle, when it is not drawn. */
export type Directions = ReadonlyMap<LinearLayer, Float32Array>;

/** Asked once a layer, before the pass, who is to see the gradient of its frozen weight; undefined: nobody. */
export type WatcherOf = (layer: LinearLayer) => GradientWatcher | undefined;

/** A layer's change by a merge: Frobenius norm of s A B. */
export interface LayerDelta {
  layer: string;
  deltaNorm: number;
}

/** A merge would have made a weight infinite or NaN; no weight of the model was changed. */
export class MergeNotFinite extends EngineError {
  constructor(readonly layer: string) {
    super(
      'MERGE_NOT_FINITE',
      `The adapter of ${layer} is not finite and was not merged; all weights are as they were`,
    );
  }
}

/**
 * The adapter phase of a model: all its linear weights frozen and packed, adapters on those of the target modules. It
 * sets `adapter` of the layers it adapts, until `dispose`.
 */
export class AdapterSet {
  private readonly bases = new Map<LinearLayer, FrozenBase>();
  /** Versions of A and B that are in a base of a merged graph. */
  private readonly mergedVersions = new Map<LinearLayer, number>();

  constructor(
    layers: readonly LinearLayer[],
    readonly settings: AdapterSettings,
    seed: number,
    restart: number,
    private plan: AdapterPlan,
  ) {
    const native = currentNative();
    native?.dropFreeBuffers(); // gradients of the base, as large as the base, are over
    for (const layer of layers) {
      this.bases.set(layer, new FrozenBase(asMatrix(layer.weight.variable)));
      if (native !== null && plan.masterFolder !== null)
        native.mapToDisk(layer.weight.variable, plan.masterFolder);
      if (settings.targetModules.includes(layer.module))
        layer.adapter = newAdapter(layer, settings, seed, restart);
    }
  }

  /** A, B and trainable scales, layer by layer. */
  *parameters(): Generator<Parameter> {
    for (const { adapter } of this.adapted()) {
      yield adapter.a;
      yield adapter.b;
      if (adapter.scale !== null) yield adapter.scale;
    }
  }

  /** A from the directions, or drawn anew, B = 0, trainable scales back to where they began. */
  restart(seed: number, restart: number, directions: Directions | null): void {
    for (const { layer, adapter } of this.adapted()) {
      const rank = adapter.b.variable.shape[0]!;
      const a = directions?.get(layer) ?? drawA(layer, rank, seed, restart);
      restartAdapter(layer, adapter, this.settings, a);
    }
  }

  /** W += s A B for all layers, all of them checked before any is changed; then packs again. Throws MergeNotFinite. */
  merge(): { deltaNorm: number; byLayer: LayerDelta[] } {
    const byLayer: LayerDelta[] = [];
    // Merged twice, first only to look: keeping all merged weights until the last is checked would double the model.
    for (const { layer, adapter } of this.adapted()) {
      const { merged, deltaNorm } = this.merged(layer, adapter);
      merged.dispose();
      byLayer.push({ layer: layer.name, deltaNorm });
    }
    for (const { layer, adapter } of this.adapted()) {
      const { merged } = this.merged(layer, adapter);
      overwrite(layer.weight.variable, merged);
      merged.dispose();
      this.bases.get(layer)?.pack();
      currentNative()?.releasePages(layer.weight.variable);
      this.mergedVersions.delete(layer);
    }
    return { deltaNorm: Math.hypot(...byLayer.map(({ deltaNorm }) => deltaNorm)), byLayer };
  }

  /** W + s A B [in, out], a new tensor. Throws MergeNotFinite. */
  merged(layer: LinearLayer, adapter: Adapter): { merged: Tensor2D; deltaNorm: number } {
    const { merged, finite, deltaNorm } = mergeAdapter(
      asMatrix(layer.weight.variable),
      asMatrix(adapter.a.variable),
      asMatrix(adapter.b.variable),
      adapterScale(layer, adapter, this.settings),
    );
    currentNative()?.releasePages(layer.weight.variable);
    if (!finite) {
      merged.dispose();
      throw new MergeNotFinite(layer.name);
    }
    return { merged, deltaNorm };
  }

  /** x[rows, in] through a layer and its adapter. Without a dropout place nothing is dropped. */
  apply(
    layer: LinearLayer,
    x: Tensor2D,
    dropout: DropoutPlace | undefined,
    precision: ProductPrecision | undefined,
  ): Tensor2D {
    const native = currentNative();
    // Another precision than the run's is computed from the weight itself, not from its packed form.
    const isPacked = native !== null && native.usesPacked(precision);
    const isMerged = isPacked && this.plan.graphs[layer.module] !== 'separate';
    const base = isMerged ? this.mergedBase(native, layer) : this.baseOf(layer);
    const adapter = isMerged ? null : layer.adapter;
    const y = loraLinear(x, base, adapter && this.adapterPass(layer, adapter, x, dropout), precision);
    if (!isPacked) native?.releasePages(base.weight);
    return y;
  }

  /** The layer for the fused halves of a block: without dropout, with a constant scale. */
  fused(native: NativeBackend, layer: LinearLayer): FusedLinear {
    const graph = this.plan.graphs[layer.module];
    const base = graph === 'separate' ? this.baseOf(layer) : this.mergedBase(native, layer);
    if (layer.adapter === null) return { base, graph, adapter: null };
    const { a, b } = layer.adapter;
    const scale = adapterScale(layer, layer.adapter, this.settings);
    const { trainsA } = layerMethod(this.settings, layer.module);
    return { base, graph, adapter: { a: asMatrix(a.variable), b: asMatrix(b.variable), scale, trainsA } };
  }

  /** x[rows, in] through the base of a layer alone, for the gradient of its weight. */
  applyWatched(layer: LinearLayer, x: Tensor2D, watcher: GradientWatcher | undefined): Tensor2D {
    return plainFrozenLinear(x, this.baseOf(layer).weight, watcher);
  }

  /** The same for the fused halves: the base has to be packed without its adapter, as it is after a merge. */
  fusedWatched(layer: LinearLayer, watcher: GradientWatcher | undefined): FusedLinear {
    return { base: this.baseOf(layer), graph: 'separate', adapter: null, ...(watcher && { watcher }) };
  }

  /**
   * Computes layers by these graphs from now on; only where the float32 weights are in memory. A base that had an adapter in
   * it gets its own weight back at once; adapters go into bases with the next pass, or with `prepare`.
   */
  useGraphs(graphs: LayerGraphs): void {
    this.plan = { ...this.plan, graphs };
    for (const layer of this.mergedVersions.keys())
      if (graphs[layer.module] === 'separate') this.baseOf(layer).pack();
    this.mergedVersions.clear();
  }

  /** Makes what the graphs need once a step, which else the next pass makes. */
  prepare(native: NativeBackend): void {
    for (const { layer } of this.adapted())
      if (this.plan.graphs[layer.module] !== 'separate') this.mergedBase(native, layer);
  }

  get packedBytes(): number {
    let bytes = 0;
    for (const base of this.bases.values()) bytes += base.bytes;
    return bytes;
  }

  dispose(): void {
    for (const { variable } of [...this.parameters()]) variable.dispose();
    for (const [layer, base] of this.bases) {
      layer.adapter = null;
      base.release();
    }
    this.bases.clear();
  }

  private baseOf(layer: LinearLayer): FrozenBase {
    const base = this.bases.get(layer);
    if (base === undefined) throw new Error(`${layer.name} is not a layer of this model`);
    return base;
  }

  /** The base with the adapter as it is now in it. */
  private mergedBase(native: NativeBackend, layer: LinearLayer): FrozenBase {
    const base = this.baseOf(layer);
    const { adapter } = layer;
    if (adapter === null) return base;
    const version = adapter.a.version + adapter.b.version;
    if (this.mergedVersions.get(layer) !== version) {
      const { a, b } = adapter;
      base.packMerged(
        native,
        asMatrix(a.variable),
        asMatrix(b.variable),
        adapterScale(layer, adapter, this.settings),
      );
      this.mergedVersions.set(layer, version);
    }
    return base;
  }

  private *adapted(): Generator<{ layer: LinearLayer; adapter: Adapter }> {
    for (const layer of this.bases.keys())
      if (layer.adapter !== null) yield { layer, adapter: layer.adapter };
  }

  private adapterPass(
    layer: LinearLayer,
    { a, b, scale }: Adapter,
    x: Tensor2D,
    dropout: DropoutPlace | undefined,
  ): AdapterPass {
    const method = layerMethod(this.settings, layer.module);
    return {
      a: asMatrix(a.variable),
      b: asMatrix(b.variable),
      scale: scale === null ? method.scale : (scale.variable as unknown as Scalar),
      trainsA: method.trainsA,
      mask: dropout === undefined || this.settings.dropout === 0 ? null : this.dropoutMask(layer, x, dropout),
    };
  }

  private dropoutMask(layer: LinearLayer, x: Tensor2D, { seed, step, micro }: DropoutPlace): Tensor2D {
    const mask = new Float32Array(x.size);
    Random.forStream(seed, 'dropout', step, micro, layer.name).fillDropoutMask(mask, this.settings.dropout);
    return tensor2d(mask, x.shape);
  }
}

/** In place where the backend allows it: the values may lie in mapped memory, and stay there. */
function overwrite(target: Variable, values: Tensor2D): void {
  const native = currentNative();
  if (native === null) return target.assign(values);
  native.array(target).set(native.array(values));
}
