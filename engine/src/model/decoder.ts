import { tidy, type Tensor2D } from '@tensorflow/tfjs-core';
import { attentionHalf as fusedAttentionHalf, type AttentionHalf } from '../ops/attentionHalf.js';
import { embedding } from '../ops/embedding.js';
import type { FusedLinear, HalfSettings } from '../ops/halfLayers.js';
import { mlpHalf as fusedMlpHalf } from '../ops/mlpHalf.js';
import { residual } from '../ops/residual.js';
import { rmsNorm } from '../ops/rmsNorm.js';
import { rotary, type RotaryTable } from '../ops/rotary.js';
import { swiglu } from '../ops/swiglu.js';
import { linearShapes } from '../plan/parameters.js';
import { targetModules, type LlamaConfig, type TargetModule } from '../plan/runSpec.js';
import type { LinearLayer } from './linearLayer.js';
import type { Parameter } from './parameter.js';
import { asMatrix, asVector, blockNames, hasBias } from './weights.js';

/** One block's weights. */
export interface Block {
  inputNorm: Parameter;
  attentionNorm: Parameter;
  linear: Record<TargetModule, LinearLayer>;
}

export interface Decoder {
  config: LlamaConfig;
  rotaryTable: RotaryTable;
  embedding: Parameter;
  blocks: Block[];
  finalNorm: Parameter;
}

/** The blocks of a model whose weights `find` gives by name. */
export function blocksOf(config: LlamaConfig, find: (name: string) => Parameter): Block[] {
  const shapes = linearShapes(config);
  return Array.from({ length: config.numHiddenLayers }, (_, index) => {
    const linear = targetModules.map((module): [TargetModule, LinearLayer] => {
      const name = blockNames.layerName(index, module);
      const weight = find(`${name}.weight`);
      const bias = hasBias(config, module) ? find(`${name}.bias`) : null;
      return [module, { name, module, ...shapes[module], weight, bias, adapter: null }];
    });
    return {
      inputNorm: find(blockNames.normName(index, blockNames.inputNorm)),
      attentionNorm: find(blockNames.normName(index, blockNames.attentionNorm)),
      linear: Object.fromEntries(linear) as Record<TargetModule, LinearLayer>,
    };
  });
}

/** What differs between training, probing and writing text. */
export interface Pass {
  batch: number;
  time: number;
  /** Position of the first id of each sequence. */
  firstPosition: number;
  /** For halves of blocks as one op each; null: op by op. */
  fused: { settings: HalfSettings; linear(layer: LinearLayer): FusedLinear } | null;
  /** y = x W, with the adapter and the bias where there are any. */
  linear(layer: LinearLayer, x: Tensor2D): Tensor2D;
  /** q[rows, heads * headDim], k and v[rows, kvHeads * headDim], positions turned in -> [rows, heads * headDim]. */
  attend(blockIndex: number, q: Tensor2D, k: Tensor2D, v: Tensor2D): Tensor2D;
}

/**
 * Hidden states after the final norm, [batch * time, hidden]. Each half of a block is a tidy of its own: what its
 * gradient does not need is given back before the next one starts.
 */
export function decode(decoder: Decoder, ids: Int32Array, pass: Pass): Tensor2D {
  const { blocks, finalNorm, config } = decoder;
  let x = embedding(asMatrix(decoder.embedding.variable), ids);
  const replace = (next: Tensor2D) => {
    x.dispose();
    x = next;
  };
  blocks.forEach((block, index) => {
    replace(tidy(() => attentionHalf(decoder, block, index, x, pass)));
    replace(tidy(() => mlpHalf(decoder, block, x, pass)));
  });
  replace(rmsNorm(x, asVector(finalNorm.variable), config.rmsNormEps));
  return x;
}

/** x + o_proj(attention(norm(x))) */
function attentionHalf(
  { config, rotaryTable }: Decoder,
  block: Block,
  index: number,
  x: Tensor2D,
  pass: Pass,
): Tensor2D {
  const { q_proj, k_proj, v_proj, o_proj } = block.linear;
  const { batch, time, firstPosition, fused } = pass;
  if (fused !== null) {
    const heads = { heads: config.numAttentionHeads, kvHeads: config.numKeyValueHeads };
    const half = {
      gain: asVector(block.inputNorm.variable),
      q: fused.linear(q_proj),
      k: fused.linear(k_proj),
      v: fused.linear(v_proj),
      o: fused.linear(o_proj),
      biases: config.attentionBias
        ? ([q_proj, k_proj, v_proj].map(({ bias }) => asVector(bias!.variable)) as AttentionHalf['biases'])
        : null,
      rotaryTable,
      shape: { batch, time, ...heads, headDim: rotaryTable.headDim },
    };
    return fusedAttentionHalf(x, half, fused.settings);
  }
  const turn = (rows: Tensor2D, heads: number) =>
    rotary(rows, rotaryTable, { batch, time, heads, firstPosition });
  const normed = rmsNorm(x, asVector(block.inputNorm.variable), config.rmsNormEps);
  const q = turn(pass.linear(q_proj, normed), config.numAttentionHeads);
  const k = turn(pass.linear(k_proj, normed), config.numKeyValueHeads);
  const v = pass.linear(v_proj, normed);
  return residual(x, pass.linear(o_proj, pass.attend(index, q, k, v)));
}

/** x + down_proj(silu(gate_proj(norm(x))) * up_proj(norm(x))) */
function mlpHalf({ config }: Decoder, block: Block, x: Tensor2D, pass: Pass): Tensor2D {
  const { gate_proj, up_proj, down_proj } = block.linear;
  const { fused } = pass;
  if (fused !== null) {
    const half = {
      gain: asVector(block.attentionNorm.variable),
      gate: fused.linear(gate_proj),
      up: fused.linear(up_proj),
      down: fused.linear(down_proj),
      intermediate: config.intermediateSize,
    };
    return fusedMlpHalf(x, half, fused.settings);
  }
  const normed = rmsNorm(x, asVector(block.attentionNorm.variable), config.rmsNormEps);
  const hidden = swiglu(pass.linear(gate_proj, normed), pass.linear(up_proj, normed));
  return residual(x, pass.linear(down_proj, hidden));
}
