import { join } from 'node:path';
import {
  blockNames,
  embeddingName,
  finalNormName,
  headName,
  transpose,
  weightShapes,
  type WeightShape,
} from '../model/weights.js';
import { architectureOf, architectures, type GgufForm } from '../plan/architectures.js';
import { headSize } from '../plan/parameters.js';
import type { GgufType, LlamaConfig } from '../plan/runSpec.js';
import { narrow } from '../io/narrow.js';
import { chatTemplateOf, otherEndIds } from './companionFiles.js';
import { ExportImpossible } from './exportImpossible.js';
import type { ExportManifest, WrittenExport } from './exportManifest.js';
import { writeGgufFile, type GgufTensor, type GgufTensorType, type GgufValue } from './ggufFile.js';
import { ggufTokenizer } from './ggufTokenizer.js';
import { q8BlockValues, quantizeQ8 } from './quantizeQ8.js';
import { moduleOf, type WeightSource } from './weightSource.js';

export const ggufFileName = 'model.gguf';

export const tensorTypes: Record<GgufType, GgufTensorType> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  q8_0: 'Q8_0',
};
/** Values of `general.file_type`. */
const fileTypes: Record<GgufTensorType, number> = { F32: 0, F16: 1, Q8_0: 7, BF16: 32 };

/** Writes the merged model with its tokenizer as one GGUF file for llama.cpp and software based on it. */
export async function writeGguf(
  source: WeightSource,
  folder: string,
  weightType: GgufType,
): Promise<WrittenExport> {
  const { config } = source;
  const type = tensorTypes[weightType];
  const { preTokenizer, isExact, metadata } = ggufTokenizer(
    source.tokenizerJson,
    source.endOfTextId,
    config.vocabSize,
    { otherEndIds: otherEndIds(source), chatTemplate: chatTemplateOf(source) },
  );
  const writer = new TensorWriter(source, type);
  const tensors = [...ropeFactors(config), ...weightShapes(config).map((weight) => writer.tensor(weight))];
  const digest = await writeGgufFile(
    join(folder, ggufFileName),
    new Map([...modelMetadata(config, type), ...metadata]),
    tensors,
  );
  return {
    files: [{ fileName: ggufFileName, ...digest, dtype: type }],
    castErrorMax: writer.castErrorMax,
    exceptions: writer.exceptions,
    tokenizer: { preTokenizer, isExact },
  };
}

export function modelMetadata(config: LlamaConfig, type: GgufTensorType): [string, GgufValue][] {
  const text = (value: string): GgufValue => ({ type: 'string', value });
  const whole = (value: number): GgufValue => ({ type: 'uint32', value });
  const real = (value: number): GgufValue => ({ type: 'float32', value });
  const architecture = formOf(config).name;
  return [
    ['general.architecture', text(architecture)],
    ['general.type', text('model')],
    ['general.file_type', whole(fileTypes[type])],
    ['general.quantization_version', whole(2)],
    [`${architecture}.vocab_size`, whole(config.vocabSize)],
    [`${architecture}.context_length`, whole(config.maxPositionEmbeddings)],
    [`${architecture}.embedding_length`, whole(config.hiddenSize)],
    [`${architecture}.block_count`, whole(config.numHiddenLayers)],
    [`${architecture}.feed_forward_length`, whole(config.intermediateSize)],
    [`${architecture}.attention.head_count`, whole(config.numAttentionHeads)],
    [`${architecture}.attention.head_count_kv`, whole(config.numKeyValueHeads)],
    [`${architecture}.attention.layer_norm_rms_epsilon`, real(config.rmsNormEps)],
    // Omitted if readers can derive it, as in files of 0.1.0, so that jobs of that version are exported to the same bytes.
    ...(headSize(config) === config.hiddenSize / config.numAttentionHeads
      ? []
      : ['key', 'value'].map((part): [string, GgufValue] => [
          `${architecture}.attention.${part}_length`,
          whole(headSize(config)),
        ])),
    [`${architecture}.rope.dimension_count`, whole(headSize(config))],
    [`${architecture}.rope.freq_base`, real(config.ropeTheta)],
  ];
}

/**
 * The model class in llama.cpp. `qwen2` is for biases on queries, keys and values; `llama` supports these too, and only `llama` reads
 * frequency factors, so a model with both uses that.
 */
export function formOf(config: LlamaConfig): GgufForm {
  const { attentionBias, ropeScaling, noRopeInterval } = config;
  const [llama] = architectures;
  const own = architectureOf(config);
  if (own === undefined) throw new ExportImpossible('GGUF', 'a model that llama.cpp computes', 'another');
  const { gguf } = attentionBias && ropeScaling !== null ? llama! : own;
  if (ropeScaling !== null && !gguf.readsRopeFactors)
    throw new ExportImpossible('GGUF', `no rope_scaling with ${gguf.name}`, 'one of type llama3');
  if (noRopeInterval !== 0 && noRopeInterval !== gguf.noRopeInterval)
    throw new ExportImpossible(
      'GGUF',
      `a no_rope_interval of ${gguf.noRopeInterval}, as llama.cpp's ${gguf.name} has`,
      `${noRopeInterval}`,
    );
  return gguf;
}

/** Llama 3.1's divisors of each rotary frequency, in llama.cpp's form. */
export function ropeFactors(config: LlamaConfig): GgufTensor[] {
  const { ropeScaling, ropeTheta } = config;
  if (ropeScaling === null) return [];
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositionEmbeddings } = ropeScaling;
  const size = headSize(config);
  const factors = Float32Array.from({ length: size / 2 }, (_, i) => {
    const turns = originalMaxPositionEmbeddings / (2 * Math.PI * ropeTheta ** ((2 * i) / size));
    if (turns > highFrequencyFactor) return 1;
    if (turns < lowFrequencyFactor) return factor;
    const smooth = (turns - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
    return 1 / ((1 - smooth) / factor + smooth);
  });
  const name = 'rope_freqs.weight';
  return [{ name, shape: [factors.length], type: 'F32', read: async () => bytesOf(factors) }];
}

/** Converts the tensors of one file and collects statistics of the conversion. */
class TensorWriter {
  castErrorMax = 0;
  readonly exceptions: ExportManifest['exceptions'] = [];

  constructor(
    private readonly source: WeightSource,
    private readonly type: GgufTensorType,
  ) {}

  tensor({ name, role, shape }: WeightShape): GgufTensor {
    const given = ggufName(name);
    // ggml supports norms and biases in float32 only.
    if (shape.length === 1) {
      const read = async () => bytesOf(this.inLlamaOrder(name, await this.source.weight(name), 1));
      return { name: given, shape, type: 'F32', read };
    }
    if (role !== 'base') {
      const type = this.typeFor(given, shape[1]!);
      return {
        name: given,
        shape,
        type,
        read: async () => this.stored(await this.source.weight(name), type, name),
      };
    }
    const [inFeatures, outFeatures] = shape as [number, number];
    const type = this.typeFor(given, inFeatures);
    const read = async () => {
      const rows = transpose(await this.source.merged(name), inFeatures, outFeatures);
      return this.stored(this.inLlamaOrder(name, rows, inFeatures), type, name);
    };
    return { name: given, shape: [outFeatures, inFeatures], type, read };
  }

  /** A q8_0 block lies within a row; tensors with shorter rows stay float16, as in llama.cpp's own converter. */
  private typeFor(tensor: string, rowLength: number): GgufTensorType {
    if (this.type !== 'Q8_0' || rowLength % q8BlockValues === 0) return this.type;
    const reason = `rows of ${rowLength} values are no multiple of ${q8BlockValues}`;
    this.exceptions.push({ tensor, dtype: 'F16', reason });
    return 'F16';
  }

  /**
   * Hugging Face rotates value i of a head with value i + half the head, llama.cpp's `llama` rotates neighbors 2i and 2i + 1: the rows of
   * queries and keys are permuted, and the scores stay the same.
   */
  private inLlamaOrder(name: string, rows: Float32Array, rowLength: number): Float32Array {
    const module = moduleOf(name.replace(/\.(weight|bias)$/, ''));
    if (module !== 'q_proj' && module !== 'k_proj') return rows;
    const { config } = this.source;
    return formOf(config).isInterleaved ? interleaveHeads(rows, rowLength, headSize(config)) : rows;
  }

  private stored(values: Float32Array, type: GgufTensorType, name: string): Uint8Array {
    const refuse = (found: string) =>
      new ExportImpossible('GGUF', `values of ${name} that ${type} can hold`, found);
    if (type === 'Q8_0') {
      const quantized = quantizeQ8(values);
      if (quantized === null) throw refuse('values too large for the scale of a block');
      return this.noted(quantized);
    }
    return this.noted(narrow(values, type, (value) => refuse(String(value))));
  }

  private noted({ bytes, errorMax }: { bytes: Uint8Array; errorMax: number }): Uint8Array {
    this.castErrorMax = Math.max(this.castErrorMax, errorMax);
    return bytes;
  }
}

/** Within each head [2, half, row] -> [half, 2, row]. */
function interleaveHeads(rows: Float32Array, rowLength: number, size: number): Float32Array {
  const half = size / 2;
  const result = new Float32Array(rows.length);
  for (let row = 0; row < rows.length / rowLength; row++) {
    const place = row % size;
    const target = row - place + 2 * (place % half) + Math.floor(place / half);
    result.set(rows.subarray(row * rowLength, (row + 1) * rowLength), target * rowLength);
  }
  return result;
}

const partNames: Record<string, string> = {
  [blockNames.inputNorm]: 'attn_norm',
  [blockNames.attentionNorm]: 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  [blockNames.queryNorm]: 'attn_q_norm',
  [blockNames.keyNorm]: 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
};

/** A weight's name in GGUF. */
export function ggufName(name: string): string {
  const whole: Record<string, string> = {
    [embeddingName]: 'token_embd.weight',
    [finalNormName]: 'output_norm.weight',
    [headName]: 'output.weight',
  };
  const [, block, part, kind] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? [];
  const given = block === undefined ? whole[name] : `blk.${block}.${partNames[part!]}.${kind}`;
  if (given === undefined) throw new Error(`GGUF has no name for ${name}`);
  return given;
}

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
