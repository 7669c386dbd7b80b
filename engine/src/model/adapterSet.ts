import type {
  Device,
  DeviceBuffer,
  DropoutPlace,
  FrozenBase,
  Layer,
  LayerAdapter,
} from '../device/device.js';
import { EngineError } from '../engineError.js';
import { arePackedOnce, separateGraphs, type LayerGraphs } from '../plan/adapterGraphs.js';
import { layerMethod } from '../plan/layerMethod.js';
import type { AdapterSettings } from '../plan/runSpec.js';
import { drawA, newAdapter, restartAdapter } from './adapters.js';
import type { Adapter, LinearLayer } from './linearLayer.js';
import { valuesOf, type Parameter } from './parameter.js';

/** How the layers of the adapter phase are computed and stored; the computed function does not depend on it. */
export interface AdapterPlan {
  graphs: LayerGraphs;
  /**
   * Folder in which the float32 weights that merges add to may be kept on disk, so that only their packed form takes memory; null: they
   * stay in memory.
   */
  masterFolder: string | null;
}

export const plainPlan: AdapterPlan = {
  graphs: separateGraphs,
  masterFolder: null,
};

/** On a CPU merged graphs read the float32 weights at every step, so they stay in memory. */
export function adapterPlan(graphs: LayerGraphs, folder: string): AdapterPlan {
  return { graphs, masterFolder: arePackedOnce(graphs) ? folder : null };
}

/** The initial A of layers in a new cycle, if it is not random. */
export type Directions = ReadonlyMap<LinearLayer, Float32Array>;

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
 * The adapter phase of a model: all its linear weights are frozen and packed, those of the target modules have adapters. It sets `adapter`
 * of the adapted layers, until `dispose`.
 */
export class AdapterSet {
  private readonly bases = new Map<LinearLayer, FrozenBase>();
  /** Versions of A and B that were merged into the packed base of a merged graph. */
  private readonly mergedVersions = new Map<LinearLayer, number>();

  constructor(
    private readonly device: Device,
    layers: readonly LinearLayer[],
    readonly settings: AdapterSettings,
    seed: number,
    restart: number,
    private plan: AdapterPlan,
  ) {
    device.trim(); // frees the gradients of the base, which are as large as the base
    for (const layer of layers) {
      const { weight, inFeatures, outFeatures } = layer;
      this.bases.set(layer, device.packBase(weight.buffer, inFeatures, outFeatures));
      if (plan.masterFolder !== null || !device.packMergedReadsWeight)
        device.park(weight.buffer, plan.masterFolder);
      if (settings.targetModules.includes(layer.module))
        layer.adapter = newAdapter(device, layer, settings, seed, restart);
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

  /** Resets A to the directions, or to new random values, B to 0, and trainable scales to their initial value. */
  restart(seed: number, restart: number, directions: Directions | null): void {
    for (const { layer, adapter } of this.adapted()) {
      const a = directions?.get(layer) ?? drawA(layer, adapter.rank, seed, restart);
      restartAdapter(this.device, layer, adapter, this.settings, a);
    }
  }

  /** W += s A B for all layers, after checking all of them; then packs again. Throws MergeNotFinite. */
  async merge(): Promise<{ deltaNorm: number; byLayer: LayerDelta[] }> {
    const byLayer: LayerDelta[] = [];
    // Merges twice, first only to check: keeping all merged weights until the last one is checked would double the model's memory.
    for (const { layer, adapter } of this.adapted()) {
      const { finite, deltaNorm } = await this.mergeInto(null, layer, adapter);
      if (!finite) throw new MergeNotFinite(layer.name);
      byLayer.push({ layer: layer.name, deltaNorm });
    }
    for (const { layer, adapter } of this.adapted()) {
      await this.mergeInto(layer.weight, layer, adapter);
      this.weightChanged(layer);
    }
    return { deltaNorm: Math.hypot(...byLayer.map(({ deltaNorm }) => deltaNorm)), byLayer };
  }

  /** Changes the weights of adapted layers in place, then packs them again. */
  async changeWeights(change: (weight: DeviceBuffer) => Promise<void>): Promise<void> {
    for (const { layer } of this.adapted()) {
      await change(layer.weight.buffer);
      this.weightChanged(layer);
    }
  }

  /** Computes W + s A B [in, out] without changing the layer. Throws MergeNotFinite. */
  async merged(layer: LinearLayer, adapter: Adapter): Promise<Float32Array> {
    const buffer = this.device.alloc(layer.weight.buffer.length);
    try {
      const { finite } = await this.mergeInto({ buffer }, layer, adapter);
      if (!finite) throw new MergeNotFinite(layer.name);
      return await valuesOf(this.device, { buffer });
    } finally {
      this.device.release(buffer);
    }
  }

  /**
   * The layer in the form that devices compute: adapters reach kernels only through this. `dropout` null: no dropout. A merged base is
   * updated here if the adapter has changed.
   */
  layer(layer: LinearLayer, dropout: DropoutPlace | null): Layer {
    const { adapter } = layer;
    if (adapter === null) return frozenLayer(layer, this.baseOf(layer));
    const parts = this.adapterOf(layer, adapter, dropout);
    if (parts.graph !== 'separate') this.packMerged(layer, adapter, parts);
    return { ...frozenLayer(layer, this.baseOf(layer)), adapter: parts };
  }

  /** The layer without its adapter, its base packed without it, for use after a merge. */
  bare(layer: LinearLayer): Layer {
    return frozenLayer(layer, this.baseOf(layer));
  }

  /**
   * From now on computes layers by these graphs; requires the float32 weights in memory. A base that had an adapter merged in is repacked
   * from its own weight at once; adapters are merged into bases in the next pass, or by `prepare`.
   */
  useGraphs(graphs: LayerGraphs): void {
    this.plan = { ...this.plan, graphs };
    for (const layer of this.mergedVersions.keys())
      if (graphs[layer.module] === 'separate')
        this.device.repackBase(this.baseOf(layer), layer.weight.buffer);
    this.mergedVersions.clear();
  }

  /** Computes what graphs need once a step, which the next pass would do otherwise. */
  prepare(): void {
    for (const { layer } of this.adapted()) this.layer(layer, null);
  }

  get graphs(): LayerGraphs {
    return this.plan.graphs;
  }

  get packedBytes(): number {
    let bytes = 0;
    for (const base of this.bases.values()) bytes += base.bytes;
    return bytes;
  }

  dispose(): void {
    for (const { buffer } of [...this.parameters()]) this.device.release(buffer);
    for (const [layer, base] of this.bases) {
      layer.adapter = null;
      this.device.releaseBase(base);
    }
    this.bases.clear();
  }

  private weightChanged(layer: LinearLayer): void {
    layer.weight.version++;
    this.device.repackBase(this.baseOf(layer), layer.weight.buffer);
    this.mergedVersions.delete(layer);
  }

  private baseOf(layer: LinearLayer): FrozenBase {
    const base = this.bases.get(layer);
    if (base === undefined) throw new Error(`${layer.name} is not a layer of this model`);
    return base;
  }

  private packMerged(layer: LinearLayer, { a, b }: Adapter, parts: LayerAdapter): void {
    const version = a.version + b.version;
    if (this.mergedVersions.get(layer) === version) return;
    this.device.packMerged(this.baseOf(layer), layer.weight.buffer, parts);
    this.mergedVersions.set(layer, version);
  }

  private *adapted(): Generator<{ layer: LinearLayer; adapter: Adapter }> {
    for (const layer of this.bases.keys())
      if (layer.adapter !== null) yield { layer, adapter: layer.adapter };
  }

  private adapterOf(
    layer: LinearLayer,
    { rank, a, b, scale }: Adapter,
    dropout: DropoutPlace | null,
  ): LayerAdapter {
    const share = this.settings.dropout;
    return {
      rank,
      a: a.buffer,
      b: b.buffer,
      scale: scale?.buffer ?? layerMethod(this.settings, layer.module).scale,
      graph: this.plan.graphs[layer.module],
      dropout: dropout === null || share === 0 ? null : { share, place: dropout },
    };
  }

  private mergeInto(
    target: Pick<Parameter, 'buffer'> | null,
    layer: LinearLayer,
    adapter: Adapter,
  ): Promise<{ finite: boolean; deltaNorm: number }> {
    const parts = this.adapterOf(layer, adapter, null);
    return this.device.mergeAdapter(target?.buffer ?? null, layer.weight.buffer, parts, layer);
  }
}

/** A layer whose weight is trained. */
export function trainedLayer({ name, index, inFeatures, outFeatures, weight, bias }: LinearLayer): Layer {
  return {
    name,
    index,
    inFeatures,
    outFeatures,
    weight: weight.buffer,
    base: null,
    adapter: null,
    bias: bias?.buffer ?? null,
  };
}

function frozenLayer(layer: LinearLayer, base: FrozenBase): Layer {
  return { ...trainedLayer(layer), base };
}
