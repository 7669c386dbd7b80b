import type { Device, ResultBuffer } from '../../engine/dist/device/device.js';
import type { HostMemory } from '../../engine/dist/device/hostMemory.js';
import type { HostResult } from '../../engine/dist/device/hostResult.js';
import type { GradientBuffer } from '../../engine/dist/model/gradientBuffer.js';
import type { GradientOptions, Llama } from '../../engine/dist/model/llama.js';
import type { Parameter } from '../../engine/dist/model/parameter.js';

/** Synchronous operations on a model, for tests on devices with host memory. */
type HostModel = Pick<Llama, 'parameters' | 'trainable' | 'differentiate' | 'addLoss'> & { device: Device };

/** A copy of a parameter's values. */
export function valuesIn(device: Device, { buffer }: Pick<Parameter, 'buffer'>): Float32Array {
  return (device as unknown as HostMemory).floats(buffer).slice();
}

/** Changes every value of a parameter. */
export function change(
  device: Device,
  parameter: Parameter,
  changed: (value: number, index: number) => number,
): void {
  device.upload(parameter.buffer, valuesIn(device, parameter).map(changed));
  parameter.version++;
}

/** Loss of one batch and a copy of every gradient, in the order of the trainable parameters. */
export function lossAndGradients(
  model: HostModel,
  inputs: Int32Array,
  targets: Int32Array,
  batch: number,
  time: number,
  { documents = null, ...options }: GradientOptions & { documents?: Int32Array | null } = {},
): { loss: number; gradients: Map<string, Float32Array> } {
  const { device } = model;
  const parameters = model.trainable();
  const { whole, parts } = device.allocTogether(parameters.map(({ buffer }) => buffer.length));
  const of = (parameter: Parameter | null) =>
    parameter === null ? null : (parts[parameters.indexOf(parameter)] ?? null);
  const result = device.newResult(0);
  try {
    const target = { parameters, parts, whole, of } as unknown as GradientBuffer;
    model.differentiate({ inputs, targets, batch, time, documents }, target, result, options);
    const copies = parameters.map(({ name }, index): [string, Float32Array] => [
      name,
      valuesIn(device, { buffer: parts[index]! }),
    ]);
    return { loss: read(result).loss, gradients: new Map(copies) };
  } finally {
    device.release(whole);
    device.releaseResult(result);
  }
}

/** Sum of the losses and number of targets other than -1. */
export function sumLoss(
  model: HostModel,
  inputs: Int32Array,
  targets: Int32Array,
  batch: number,
  time: number,
): { sum: number; count: number } {
  const result = model.device.newResult(0);
  model.addLoss({ inputs, targets, batch, time }, result);
  model.device.releaseResult(result);
  return { sum: read(result).lossSum, count: targets.filter((target) => target !== -1).length };
}

function read(result: ResultBuffer) {
  return (result as HostResult).read();
}
