import type { Device } from '../device/device.js';
import { layerMethod } from '../plan/layerMethod.js';
import type { AdapterSettings } from '../plan/runSpec.js';
import { Random } from '../random.js';
import type { Adapter, LinearLayer } from './linearLayer.js';
import { assign, makeParameter } from './parameter.js';

/** Largest initial s of a trainable scale: beyond it tanh is nearly flat, and g would hardly learn. */
const initialScaleMax = 0.9;

/** A new adapter: A from the stream (seed, 'adapter', layer, restart), B = 0, so that the layer's output does not change. */
export function newAdapter(
  device: Device,
  layer: LinearLayer,
  settings: AdapterSettings,
  seed: number,
  restart: number,
): Adapter {
  const { name, module, inFeatures, outFeatures } = layer;
  const { rank } = layerMethod(settings, module);
  return {
    rank,
    a: makeParameter(device, `${name}.lora_A`, 'adapterA', drawA(layer, rank, seed, restart), [
      inFeatures,
      rank,
    ]),
    b: makeParameter(device, `${name}.lora_B`, 'adapterB', new Float32Array(rank * outFeatures), [
      rank,
      outFeatures,
    ]),
    scale: settings.trainableScale
      ? makeParameter(
          device,
          `${name}.lora_scale`,
          'adapterScale',
          Float32Array.of(initialScale(layer, settings)),
          [],
        )
      : null,
  };
}

/** Sets A to the given values, B to 0, and a trainable scale to its initial value. */
export function restartAdapter(
  device: Device,
  layer: LinearLayer,
  adapter: Adapter,
  settings: AdapterSettings,
  a: Float32Array,
): void {
  assign(device, adapter.a, a);
  assign(device, adapter.b, new Float32Array(adapter.b.buffer.length));
  if (adapter.scale !== null) assign(device, adapter.scale, Float32Array.of(initialScale(layer, settings)));
}

/**
 * The g for which tanh(g) is the constant scale, so that a trainable scale starts with the same value. Differs from the authors' code,
 * which resets g to 0 at a restart: tanh(0) = 0 blocks the gradients of A and B (docs/relora.md).
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
