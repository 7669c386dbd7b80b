import type { Tensor, Tensor2D } from '@tensorflow/tfjs-core';
import type { HalfLayer, HalfLayerWithGradients, ProductPrecision } from '../backend/nativeAddon.js';
import type { NativeBackend, Output } from '../backend/nativeBackend.js';
import type { LayerGraph } from '../plan/adapterGraphs.js';
import type { FrozenBase } from './frozenBase.js';

/** One linear layer of a fused half: trained whole, or frozen with an adapter or without one. */
export type FusedLinear =
  | { trained: Tensor2D }
  | { base: FrozenBase; graph: LayerGraph; adapter: { a: Tensor2D; b: Tensor2D; scale: number } | null };

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
  return layer.adapter === null ? [] : [layer.adapter.a, layer.adapter.b];
}

/** The layer's arguments with fresh gradients, which are given out as tensors in the order of `trainedTensors`. */
export function layerWithGradients(
  native: NativeBackend,
  layer: FusedLinear,
): { args: HalfLayerWithGradients; gradients: Tensor[] } {
  const outputs = trainedTensors(layer).map((tensor) => native.output(tensor.shape));
  const arrays = outputs.map(({ values }) => values);
  const [dweight, da, db] = 'trained' in layer ? [arrays[0]!, none, none] : [none, ...orNone(arrays)];
  return {
    args: [dweight, da, db, ...layerArguments(native, layer)],
    gradients: outputs.map(({ tensor }: Output<Tensor>) => tensor),
  };
}

function orNone([da = none, db = none]: Float32Array[]): [Float32Array, Float32Array] {
  return [da, db];
}
