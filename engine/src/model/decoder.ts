import type {
  AttentionHalf,
  Device,
  DeviceBuffer,
  Documents,
  ForwardMode,
  HalfState,
  KeyValueCache,
  Layer,
  LayerGradients,
  MlpHalf,
  NormShape,
  RotaryAngles,
  TableShape,
} from '../device/device.js';
import { hasRope, headSize, linearShapes } from '../plan/parameters.js';
import { targetModules, type LlamaConfig, type TargetModule } from '../plan/runSpec.js';
import type { LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';
import { blockNames, hasBias } from './weights.js';

/** One block's weights. */
export interface Block {
  inputNorm: Parameter;
  attentionNorm: Parameter;
  /** Norms of each head of queries and keys; null if there are none. */
  headNorms: Record<'q' | 'k', Parameter> | null;
  hasRope: boolean;
  linear: Record<TargetModule, LinearLayer>;
}

export interface Decoder {
  device: Device;
  config: LlamaConfig;
  angles: RotaryAngles;
  embedding: Parameter;
  blocks: Block[];
  finalNorm: Parameter;
}

/** The blocks of a model; `find` returns weights by name. */
export function blocksOf(config: LlamaConfig, find: (name: string) => Parameter): Block[] {
  return Array.from({ length: config.numHiddenLayers }, (_, block) => blockOf(config, block, find));
}

/** A single block. */
export function blockOf(config: LlamaConfig, block: number, find: (name: string) => Parameter): Block {
  const shapes = linearShapes(config);
  const linear = targetModules.map((module, place): [TargetModule, LinearLayer] => {
    const name = blockNames.layerName(block, module);
    const weight = find(`${name}.weight`);
    const bias = hasBias(config, module) ? find(`${name}.bias`) : null;
    const index = block * targetModules.length + place;
    return [module, { name, index, module, ...shapes[module], weight, bias, adapter: null }];
  });
  const norm = (name: string) => find(blockNames.normName(block, name));
  return {
    inputNorm: norm(blockNames.inputNorm),
    attentionNorm: norm(blockNames.attentionNorm),
    headNorms: config.qkNorm ? { q: norm(blockNames.queryNorm), k: norm(blockNames.keyNorm) } : null,
    hasRope: hasRope(config, block),
    linear: Object.fromEntries(linear) as Record<TargetModule, LinearLayer>,
  };
}

/** The differences between training, probes and generation. */
export interface Pass {
  batch: number;
  time: number;
  precision: ForwardMode['precision'];
  /** Whether a backward pass follows, and whether it recomputes the states. */
  backward: 'none' | 'kept' | 'recomputed';
  /** Cache of the sequence being generated; the new ids follow those in it. */
  cache: KeyValueCache | null;
  /** Null: documents attend to each other. */
  documents: Documents | null;
  /** Returns a layer in the form that devices compute. */
  layer(layer: LinearLayer): Layer;
}

type Half = ({ kind: 'attention' } & AttentionHalf) | ({ kind: 'mlp' } & MlpHalf);

/** A computed half with its state for the backward pass. */
interface Step {
  block: Block;
  half: Half;
  x: DeviceBuffer;
  state: HalfState | null;
}

/** A forward pass. The caller owns its buffers until `differentiate` or `release` has released them. */
export interface Decoded {
  /** Hidden states after the last norm, [rows, hidden]. */
  hidden: DeviceBuffer;
  /** Input of the last norm, and its state; like the steps only kept for a backward pass. */
  last: DeviceBuffer | null;
  lastState: HalfState | null;
  steps: Step[];
}

/** ids[batch * time] -> hidden states: embedding, the halves of each block, the last norm. */
export function decode(decoder: Decoder, ids: Int32Array, pass: Pass): Decoded {
  const { device, config, finalNorm } = decoder;
  const { backward } = pass;
  const rows = pass.batch * pass.time;
  const steps: Step[] = [];
  const stream = () => device.alloc(rows * config.hiddenSize, 'activation');

  let x = stream();
  device.embeddingForward(x, decoder.embedding.buffer, ids, tableShape(config, rows));
  decoder.blocks.forEach((block, index) => {
    x = passBlock(decoder, block, index, x, pass, steps);
  });
  const hidden = stream();
  const isDifferentiated = backward !== 'none';
  const lastState = device.rmsNormForward(hidden, x, finalNorm.buffer, normShape(config, rows), {
    keepsState: isDifferentiated,
  });
  if (isDifferentiated) return { hidden, last: x, lastState, steps };
  device.release(x);
  return { hidden, last: null, lastState, steps };
}

/** Computes a block from x. Releases x, or keeps it with the steps if a backward pass follows. */
export function passBlock(
  decoder: Pick<Decoder, 'device' | 'config' | 'angles'>,
  block: Block,
  index: number,
  x: DeviceBuffer,
  pass: Pass,
  steps: Step[] = [],
): DeviceBuffer {
  const { device } = decoder;
  const { cache, precision, backward } = pass;
  for (const half of [attentionHalf(decoder, block, pass), mlpHalf(decoder, block, pass)]) {
    const y = device.alloc(x.length, 'activation');
    const mode: ForwardMode = {
      keepsState: backward === 'kept',
      precision,
      cache: cache && { keysAndValues: cache, block: index },
    };
    const state =
      half.kind === 'attention'
        ? device.attentionHalfForward(y, x, half, mode)
        : device.mlpHalfForward(y, x, half, mode);
    if (backward === 'none') device.release(x);
    else steps.push({ block, half, x, state });
    x = y;
  }
  return x;
}

/** Destinations for the gradients of a backward pass. */
export interface GradientTargets {
  /** For a norm's gain, the embedding, or a bias: [the parameter's shape]; null: not computed. */
  of(parameter: Parameter): DeviceBuffer | null;
  layer(layer: LinearLayer): LayerGradients;
}

/**
 * The backward pass of `decode`, from the gradient of its hidden states, which it takes ownership of; releases everything that the pass
 * holds. Yields after each half: its layers, whose gradients are complete, and its norm, whose gradient is the last of the half in the
 * reverse order of Hugging Face's files.
 */
export function* differentiate(
  { device, config, embedding, finalNorm }: Decoder,
  { last, lastState, steps }: Decoded,
  dhidden: DeviceBuffer,
  ids: Int32Array,
  targets: GradientTargets,
  isTied: boolean,
): Generator<{ layers: LinearLayer[]; norm: Parameter }> {
  const rows = ids.length;
  // The norm kernel always writes the gradient of its gain; if it is not wanted, it goes here.
  const unwanted = device.alloc(config.hiddenSize);
  const unwantedHead = config.qkNorm ? device.alloc(headSize(config)) : null;
  const gain = (parameter: Parameter) => targets.of(parameter) ?? unwanted;
  const headGain = (parameter: Parameter) => targets.of(parameter) ?? unwantedHead!;
  const stream = () => device.alloc(rows * config.hiddenSize, 'activation');

  let dy = stream();
  const ofNorm = { dx: dy, gain: gain(finalNorm) };
  device.rmsNormBackward(ofNorm, dhidden, last!, finalNorm.buffer, lastState, normShape(config, rows));
  device.release(dhidden);
  device.release(last);
  for (let step = steps.pop(); step !== undefined; step = steps.pop()) {
    const { block, half, x, state } = step;
    const dx = stream();
    const { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj } = block.linear;
    const { layer } = targets;
    if (half.kind === 'attention') {
      const gradients = {
        dx,
        gain: gain(block.inputNorm),
        headNorms: block.headNorms && { q: headGain(block.headNorms.q), k: headGain(block.headNorms.k) },
        q: layer(q_proj),
        k: layer(k_proj),
        v: layer(v_proj),
        o: layer(o_proj),
      };
      device.attentionHalfBackward(gradients, dy, x, state, half);
    } else {
      const gradients = {
        dx,
        gain: gain(block.attentionNorm),
        gate: layer(gate_proj),
        up: layer(up_proj),
        down: layer(down_proj),
      };
      device.mlpHalfBackward(gradients, dy, x, state, half);
    }
    device.release(dy);
    device.release(x);
    dy = dx;
    yield half.kind === 'attention'
      ? { layers: [q_proj, k_proj, v_proj, o_proj], norm: block.inputNorm }
      : { layers: [gate_proj, up_proj, down_proj], norm: block.attentionNorm };
  }
  const dtable = targets.of(embedding);
  if (dtable !== null) device.embeddingBackward(dtable, dy, ids, tableShape(config, rows), isTied);
  device.release(dy);
  device.release(unwanted);
  device.release(unwantedHead);
}

export function tableShape({ vocabSize, hiddenSize }: LlamaConfig, rows: number): TableShape {
  return { rows, vocabulary: vocabSize, hidden: hiddenSize };
}

export function normShape({ hiddenSize, rmsNormEps }: LlamaConfig, rows: number): NormShape {
  return { rows, hidden: hiddenSize, epsilon: rmsNormEps };
}

function attentionHalf(
  { config, angles }: Pick<Decoder, 'config' | 'angles'>,
  block: Block,
  pass: Pass,
): Half {
  const { q_proj, k_proj, v_proj, o_proj } = block.linear;
  const { hiddenSize: hidden, numAttentionHeads: heads, numKeyValueHeads: kvHeads } = config;
  return {
    kind: 'attention',
    shape: { batch: pass.batch, time: pass.time, hidden, heads, kvHeads, headDim: headSize(config) },
    gain: block.inputNorm.buffer,
    epsilon: config.rmsNormEps,
    q: pass.layer(q_proj),
    k: pass.layer(k_proj),
    v: pass.layer(v_proj),
    o: pass.layer(o_proj),
    headNorms: block.headNorms && { q: block.headNorms.q.buffer, k: block.headNorms.k.buffer },
    angles: block.hasRope ? angles : null,
    documents: pass.documents,
  };
}

function mlpHalf({ config }: Pick<Decoder, 'config'>, block: Block, pass: Pass): Half {
  const { gate_proj, up_proj, down_proj } = block.linear;
  const { hiddenSize: hidden, intermediateSize: intermediate } = config;
  return {
    kind: 'mlp',
    shape: { batch: pass.batch, time: pass.time, hidden, intermediate },
    gain: block.attentionNorm.buffer,
    epsilon: config.rmsNormEps,
    gate: pass.layer(gate_proj),
    up: pass.layer(up_proj),
    down: pass.layer(down_proj),
  };
}
