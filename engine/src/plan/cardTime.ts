import { chooseGraphs, thinPasses } from './adapterGraphs.js';
import { arithmeticOf, type DeviceSpeed } from './deviceSpeed.js';
import { layerMethod } from './layerMethod.js';
import { signWorkOf } from './optimizerCost.js';
import { countParameters, linearShapes } from './parameters.js';
import { targetModules, type RunSpec } from './runSpec.js';
import type { TimeParts } from './timeModel.js';

/*
 * A card's step time from what it computes and moves, at the measured rates of a product and of a copy. The factors below are assumptions:
 * none has been measured on a card yet. Step times of real jobs correct the estimate (reachedSpeed.ts).
 */
const attentionShare = 0.4;
/** Products with few columns or rows are memory-bound. */
const thinShare = 0.3;
/** Bytes read and written per element in both passes: of the residual stream, and of the activations between up and down. */
const elementBytes = { stream: 60, inner: 24 } as const;
/** Bytes that the update moves per trained value, gradient norm included. */
const updateBytes = 32;
/** Kernel launches per block and micro-batch (forward and backward), and the minimum time of each. */
const [launches, launchSeconds] = [90, 4e-6];

/** Infinite if the card was not measured. */
export function cardStepTime(spec: RunSpec, device: DeviceSpeed): TimeParts {
  const { model, adapter, batch } = spec;
  const { precision } = arithmeticOf(spec, device);
  const rate = precision === 'bfloat16' ? device.bfloat16Flops : device.float32Flops;
  const bandwidth = device.memoryBytesPerSecond;
  const graphs = chooseGraphs(spec, { instructionSet: device.instructionSet, precision });
  const shapes = linearShapes(model);
  const layers = model.numHiddenLayers;
  const tokens = batch.sequenceCount * batch.sequenceLength;
  const micros = Math.ceil(batch.sequenceCount / batch.microBatchSequenceCount);
  const again = spec.recomputation === 'blocks' ? 1 : 0;
  let base = 0;
  let adapters = 0;
  for (const name of targetModules) {
    const { inFeatures, outFeatures } = shapes[name];
    const weights = inFeatures * outFeatures;
    base += (tokens * 2 * weights * ((adapter === null ? 3 : 2) + again)) / rate;
    if (adapter === null || !adapter.targetModules.includes(name)) continue;
    const { rank, trainsA } = layerMethod(adapter, name);
    const { inputs, outputs } = thinPasses(trainsA)[graphs[name] === 'separate' ? 'separate' : 'merged'];
    adapters += (tokens * rank * (inputs * inFeatures + outputs * outFeatures)) / (thinShare * rate);
    if (graphs[name] !== 'separate') adapters += (2 * rank * weights) / rate + (8 * weights) / bandwidth;
  }
  const { hiddenSize, intermediateSize, vocabSize } = model;
  const moved = elementBytes.stream * hiddenSize + elementBytes.inner * intermediateSize;
  const attended = tokens * batch.sequenceLength * shapes.q_proj.outFeatures;
  return {
    base: layers * base,
    adapters: layers * adapters,
    attention: (layers * attended * (2 * (1 + again) + 5)) / (attentionShare * rate),
    head: (6 * tokens * hiddenSize * vocabSize) / rate,
    elements: (layers * tokens * moved) / bandwidth,
    update: (countParameters(spec).trainable * updateBytes) / bandwidth,
    signs: (signWorkOf(spec)?.flops ?? 0) / rate,
    other: launches * launchSeconds * layers * micros,
  };
}
