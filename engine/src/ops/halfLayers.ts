import type { Tensor, Tensor2D } from '@tensorflow/tfjs-core';
import type { HalfLayer, HalfLayerWithGradients, ProductPrecision } from '../backend/nativeAddon.js';
import type { NativeBackend, Output } from '../backend/nativeBackend.js';
import type { LayerGraph } from '../plan/adapterGraphs.js';
import type { FrozenBase } from './frozenBase.js';

/** Takes the gradient [in, out] of a frozen weight as soon as it is there; the array is gone afterwards. */
export type GradientWatcher = (gradient: Float32Array) => void;

/**
 * One linear layer of a fused half: trained whole, or frozen with an adapter or without one. A frozen one without may be
 * watched: its gradient is made, but nothing is trained by it.
 */
export type FusedLinear =
  | { trained: Tensor2D }
  | {
      base: FrozenBase;
      graph: LayerGraph;
      adapter: { a: Tensor2D; b: Tensor2D; scale: number; trainsA: boolean } | null;
      watcher?: GradientWatcher;
    };

/** How a half computes, beside its layers. */
export interface HalfSettings {
  native: NativeBackend;
  epsilon: number;
  precision: ProductPrecision;
  /** Make the state of the backward pass again instead of keeping it. */
  recompute: boolean;
}

/** What is kept for the backward pass is kept in bfloat16 unless all products are exact float32. */
export const isCompact = ({ native, precision }: HalfSettings): boolean =>
  precision !== 'float32' || native.basePrecision !== 'float32';

const none = new Float32Array(0);

export function layerArguments(native: NativeBackend, layer: FusedLinear): HalfLayer {
  if ('trained' in layer) return [null, native.array(layer.trained), none, none, 1, 0, 'separate'];
  const { base, graph, adapter } = layer;
  if (adapter === null) return [base.panelsFor(native), none, none, none, 1, 0, graph];
  const { a, b, scale } = adapter;
  return [base.panelsFor(native), none, native.array(a), native.array(b), scale, b.shape[0], graph];
}

/** Rank of the path that is computed beside the base; 0 where there is none. */
export function separateRank(layer: FusedLinear): number {
  return 'trained' in layer || layer.graph !== 'separate' ? 0 : (layer.adapter?.b.shape[0] ?? 0);
}

/** What a gradient is wanted of, in order. */
export function trainedTensors(layer: FusedLinear): Tensor[] {
  if ('trained' in layer) return [layer.trained];
  if (layer.adapter === null) return [];
  const { a, b, trainsA } = layer.adapter;
  return trainsA ? [a, b] : [b];
}

/**
 * The layer's arguments with fresh gradients. Once those are made, `take` shows a watcher its own, and gives the others out in
 * the order of `trainedTensors`.
 */
export function layerWithGradients(
  native: NativeBackend,
  layer: FusedLinear,
): { args: HalfLayerWithGradients; take: () => Tensor[] } {
  const outputs = trainedTensors(layer).map((tensor) => native.output(tensor.shape));
  const gradients = outputs.map(({ tensor }: Output<Tensor>) => tensor);
  const arrays = outputs.map(({ values }) => values);
  const rest = layerArguments(native, layer);
  if ('trained' in layer) return { args: [arrays[0]!, none, none, ...rest], take: () => gradients };
  const { watcher } = layer;
  if (watcher !== undefined) {
    const { tensor, values } = native.output(layer.base.weight.shape);
    const show = (): Tensor[] => {
      watcher(values);
      tensor.dispose();
      return [];
    };
    return { args: [values, none, none, ...rest], take: show };
  }
  const [db = none, da = none] = arrays.reverse(); // B comes last, whether A is trained or not
  return { args: [none, da, db, ...rest], take: () => gradients };
}
