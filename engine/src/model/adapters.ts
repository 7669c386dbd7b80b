import { tensor, tidy } from '@tensorflow/tfjs-core';
import { layerMethod } from '../plan/layerMethod.js';
import type { AdapterSettings } from '../plan/runSpec.js';
import { Random } from '../random.js';
import type { Adapter, LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';
import { makeParameter } from './weights.js';

/** s of a trainable scale never starts above this: tanh is nearly flat beyond, and g would hardly learn. */
const initialScaleMax = 0.9;

/** A new adapter: A from the stream (seed, 'adapter', layer, restart), B = 0, so the layer computes what it did before. */
export function newAdapter(
  layer: LinearLayer,
  settings: AdapterSettings,
  seed: number,
  restart: number,
): Adapter {
  const { name, module, inFeatures, outFeatures } = layer;
  const { rank } = layerMethod(settings, module);
  return {
    a: makeParameter(`${name}.lora_A`, 'adapterA', drawA(layer, rank, seed, restart), [inFeatures, rank]),
    b: makeParameter(`${name}.lora_B`, 'adapterB', new Float32Array(rank * outFeatures), [rank, outFeatures]),
    scale: settings.trainableScale
      ? makeParameter(
          `${name}.lora_scale`,
          'adapterScale',
          Float32Array.of(initialScale(layer, settings)),
          [],
        )
      : null,
  };
}

/** A as given, B = 0, a trainable scale back to where it began. */
export function restartAdapter(
  layer: LinearLayer,
  adapter: Adapter,
  settings: AdapterSettings,
  a: Float32Array,
): void {
  assign(adapter.a, a);
  assign(adapter.b, new Float32Array(adapter.b.variable.size));
  if (adapter.scale !== null) assign(adapter.scale, Float32Array.of(initialScale(layer, settings)));
}

/** s of y = x W + s (x A) B: a constant, or tanh(g). */
export function adapterScale(layer: LinearLayer, adapter: Adapter, settings: AdapterSettings): number {
  if (adapter.scale === null) return layerMethod(settings, layer.module).scale;
  return Math.tanh(adapter.scale.variable.dataSync()[0] ?? Number.NaN);
}

/**
 * g where tanh(g) is the constant scale, so that a trainable one starts alike. Differs from the authors' code, which resets
 * it to 0 at a restart: tanh(0) = 0 lets no gradient through to A and B (docs/relora.md).
 */
function initialScale({ module }: LinearLayer, settings: AdapterSettings): number {
  return Math.atanh(Math.min(layerMethod(settings, module).scale, initialScaleMax));
}

/** Kaiming uniform with a = sqrt(5), which is U(-1/sqrt(in), 1/sqrt(in)). */
export function drawA(
  { name, inFeatures }: LinearLayer,
  rank: number,
  seed: number,
  restart: number,
): Float32Array {
  const values = new Float32Array(inFeatures * rank);
  const bound = 1 / Math.sqrt(inFeatures);
  Random.forStream(seed, 'adapter', name, restart).fillUniform(values, -bound, bound);
  return values;
}

function assign(target: Parameter, values: Float32Array): void {
  tidy(() => target.variable.assign(tensor(values, target.variable.shape, 'float32')));
  target.version++;
}
