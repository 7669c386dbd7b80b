import { chooseGraphs, packFlops, thinPasses, thinShare, weightGradientShare } from './adapterGraphs.js';
import { cardStepTime } from './cardTime.js';
import { arithmeticOf, isFused, measuredProduct, type DeviceSpeed } from './deviceSpeed.js';
import { layerMethod } from './layerMethod.js';
import { signWorkOf } from './optimizerCost.js';
import { countParameters, linearShapes } from './parameters.js';
import { targetModules, type RunSpec } from './runSpec.js';

/** Seconds of a step, by purpose. */
export interface TimeParts {
  /** Products with linear weights: forward, dx, and dW where weights are trained. */
  base: number;
  /** Products of adapters, and merged weights computed once a step. */
  adapters: number;
  attention: number;
  head: number;
  /** Norms, activations, rotary embedding, and their memory traffic. */
  elements: number;
  update: number;
  /** Matrix signs of Muon and LoRA-Muon. */
  signs: number;
  /** Everything that is not a kernel. */
  other: number;
}

/*
 * Fractions of a device's measured rates, from whole steps timed kernel by kernel on two cores with AVX512-BF16 (demo to llama-1b in every
 * precision) and with AVX-512 and AVX2 only: bench/results/2026-11-24-amd-epyc-avx512bf16-estimates.md. The rates are those of a layer's
 * product and not the peaks of the instructions, which some processors' caches keep much farther from than others'.
 */
const productShare = 0.965;
const attentionShare = { float32: 0.58, bfloat16: 0.485 } as const;
const headShare = (hiddenSize: number): number => (0.83 * hiddenSize) / (hiddenSize + 28);
/** Cost per element of the residual stream in a block, in operations at float32's rate, forward and backward: norms, copies, sums. */
const streamOperations = { forward: 75, backward: 150 } as const;
/** The same per element between up and down: the sigmoid and its derivative. */
const innerOperations = { forward: 61, backward: 112 } as const;
/** Cost of unpacking an nf4 weight and packing it for one pass, in operations at float32's rate: half a packing, and half more. */
const unpackOperations = 0.7 * packFlops;
/** Bytes that the update moves per trained value, gradient norm included. */
const updateBytes = 32;
/** Bytes moved per value when gradients of micro-batches are summed. */
const sumBytes = 12;
/**
 * Seconds of a thread per element that a matrix sign packs, copies and adds beside its products: a smaller matrix reaches less of their
 * rate. Between 1e-9 and 2.5e-9 in three measurements: bench/results/2026-11-30-amd-epyc-signs.md.
 */
const signElementSeconds = 2e-9;
/** JavaScript, page faults and waiting, per block and micro-batch. */
const blockSeconds = 1.4e-3;
/*
 * Tiles (AMX) multiply so fast that what surrounds products takes as long as they do, and is not faster where tiles are: in operations at
 * float32's rate, for each operand that is packed or result that is written, each logit, and each pair of a query and a visible key. From steps
 * of the demo to llama-60m on a fourth generation Xeon, timed kernel by kernel at two speeds of its tiles
 * (bench/results/2026-12-01-intel-xeon-amx-kernels.md).
 */
const tileOperations = { element: 30, logit: 100, pair: { forward: 210, backward: 530 } } as const;

/** Seconds of a step of the main phase. Infinite if the device's speed is unknown. */
export function stepTime(spec: RunSpec, device: DeviceSpeed): TimeParts {
  if (device.backend === 'cuda') return cardStepTime(spec, device);
  const { model, adapter, batch } = spec;
  const { precision, basePrecision } = arithmeticOf(spec, device);
  const shapes = linearShapes(model);
  const layers = model.numHiddenLayers;
  const tokens = batch.sequenceCount * batch.sequenceLength;
  const micros = Math.ceil(batch.sequenceCount / batch.microBatchSequenceCount);
  const rates = {
    float32: device.float32Flops,
    bfloat16: device.bfloat16Flops || device.float32Flops,
    int8: device.int8Flops || device.float32Flops,
  };
  const isTiled = device.instructionSet === 'amx' && precision === 'bfloat16';
  if (isTiled) {
    rates.bfloat16 = tilesAlone(rates.bfloat16, device);
    rates.int8 = tilesAlone(rates.int8, device);
  }
  const rate = productShare * rates[precision];
  const isUnpacked = adapter !== null && basePrecision === 'nf4';
  // Products with e4m3 have not been measured.
  const isMultipliedAs = basePrecision === 'nf4' || basePrecision === 'fp8' ? precision : basePrecision;
  const baseKind = adapter === null ? precision : isMultipliedAs;
  const baseRate = productShare * rates[baseKind];
  const graphs = chooseGraphs(spec, { instructionSet: device.instructionSet, precision });
  // Its share is that of the other precisions: it was not fitted for int8.
  const headKind = spec.headPrecision === 'int8' ? 'int8' : precision;
  // Recomputation repeats the forward pass, except for the last layer of each half.
  const isRepeated = spec.recomputation === 'blocks' && isFused(device);

  let base = 0;
  let adapters = 0;
  let tileElements = 0;
  for (const name of targetModules) {
    const { inFeatures, outFeatures } = shapes[name];
    const weights = inFeatures * outFeatures;
    const isLast = name === 'o_proj' || name === 'down_proj';
    const forwards = 1 + (isRepeated && !isLast ? 1 : 0);
    base += (tokens * 2 * weights * (forwards + 1)) / baseRate;
    const isTrained = adapter === null || adapter.targetModules.includes(name);
    tileElements += tokens * (inFeatures + outFeatures) * (forwards + 1 + (isTrained ? 2 : 0));
    if (isUnpacked) base += (micros * (forwards + 1) * unpackOperations * weights) / rates.float32;
    if (adapter === null) {
      base += (tokens * 2 * weights) / (weightGradientShare * rate);
      continue;
    }
    if (!isTrained) continue;
    const { rank, trainsA } = layerMethod(adapter, name);
    const graph = graphs[name];
    const passes = thinPasses(trainsA);
    const thin = (tokens * rank) / (thinShare(rank) * rate);
    if (graph === 'weightGradient') {
      adapters += (tokens * 2 * weights) / (weightGradientShare * rate);
      adapters += (micros * passes.weightGradient * rank * weights) / (thinShare(rank) * rate);
    } else {
      const again = graph === 'separate' ? 2 * (forwards - 1) : 0;
      const { inputs, outputs } = passes[graph];
      adapters += thin * ((inputs + again) * inFeatures + (outputs + again) * outFeatures);
    }
    if (graph !== 'separate') adapters += ((2 * rank + packFlops) * weights) / (productShare * rates.float32);
  }

  const passes = isRepeated ? 1 : 0;
  const attended = tokens * batch.sequenceLength * shapes.q_proj.outFeatures; // the causal half
  const stream = streamOperations.forward * (1 + passes) + streamOperations.backward;
  const inner = innerOperations.forward * (1 + passes) + innerOperations.backward;
  const { trainable } = countParameters(spec);
  const pairs = (tokens * batch.sequenceLength * model.numAttentionHeads) / 2;
  const { element, logit, pair } = tileOperations;
  const around = isTiled
    ? {
        attention: (layers * pairs * (pair.forward * (1 + passes) + pair.backward)) / rates.float32,
        head: (logit * tokens * model.vocabSize) / rates.float32,
        elements: (layers * element * tileElements) / rates.float32,
      }
    : { attention: 0, head: 0, elements: 0 };
  const attentionRate = (isTiled ? 1 : attentionShare[precision]) * rates[precision];
  return {
    base: layers * base,
    adapters: layers * adapters,
    attention: (layers * attended * (2 * (1 + passes) + 5)) / attentionRate + around.attention,
    head:
      (2 * tokens * model.hiddenSize * model.vocabSize * (1 / rates[precision] + 2 / rates[headKind])) /
        (isTiled ? 1 : headShare(model.hiddenSize)) +
      around.head,
    elements:
      (layers * tokens * (stream * model.hiddenSize + inner * model.intermediateSize)) / rates.float32 +
      around.elements,
    update: (trainable * (updateBytes + sumBytes * (micros - 1))) / device.memoryBytesPerSecond,
    signs: signSeconds(spec, rate, device.threadCount),
    other: blockSeconds * layers * micros,
  };
}

/** The rate of tiles without what surrounds the layer's product that was measured, from its rate with that; at most three times as high. */
function tilesAlone(rate: number, { float32Flops }: DeviceSpeed): number {
  if (rate === 0) return 0;
  const { inFeatures, outFeatures } = measuredProduct;
  const around = (tileOperations.element * (inFeatures + outFeatures)) / float32Flops;
  const operations = 2 * inFeatures * outFeatures;
  return Math.min(3 * rate, operations / Math.max(operations / rate - around, 0));
}

function signSeconds(spec: RunSpec, rate: number, threadCount: number): number {
  const work = signWorkOf(spec);
  return work === null ? 0 : work.flops / rate + (signElementSeconds * work.elements) / threadCount;
}

export function secondsOf(parts: TimeParts): number {
  return Object.values(parts).reduce((sum: number, seconds: number) => sum + seconds, 0);
}
