import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { exportModel, type WeightSource } from '@relora/engine';
import { jsonTokenizer } from '@relora/engine/data';
import { largeTokenizerJson } from './largeTokenizer.js';
import { findLlamaCpp } from './llamaCpp.js';
import { temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const open = await findLlamaCpp();
if (typeof open === 'string') console.warn(`Skipped: the tests with llama.cpp, since ${open}`);

/** A model of zeros: only its vocabulary is large. */
function zeros(vocabSize: number): WeightSource {
  const config = { ...tinySpec({}).model, vocabSize, hiddenSize: 32, numHiddenLayers: 1 };
  const { hiddenSize, intermediateSize, numAttentionHeads, numKeyValueHeads } = config;
  const keys = (hiddenSize / numAttentionHeads) * numKeyValueHeads;
  const sizes: [pattern: RegExp, size: number][] = [
    [/norm/, hiddenSize],
    [/mlp/, hiddenSize * intermediateSize],
    [/[kv]_proj/, hiddenSize * keys],
    [/[qo]_proj/, hiddenSize * hiddenSize],
    [/embed_tokens|lm_head/, vocabSize * hiddenSize],
  ];
  const weight = async (name: string) =>
    new Float32Array(sizes.find(([pattern]) => pattern.test(name))![1]).fill(0.01);
  return {
    config,
    adapter: null,
    lineage: {
      specSha256: '0'.repeat(64),
      datasetSha256: '0'.repeat(64),
      step: 1,
      cycle: null,
      restartCount: 0,
      trainedTokens: 1,
    },
    tokenizerJson: largeTokenizerJson(vocabSize),
    endOfTextId: 0,
    modelFiles: {},
    weight,
    merged: weight,
    factors: async () => null,
  };
}

// The larger one has more tokens than a function call can have arguments, whatever the machine's stack size.
describe.each([128_256, 300_000])('a vocabulary of %i tokens', (vocabSize) => {
  it.runIf(typeof open === 'function')(
    'is exported as GGUF, and llama.cpp cuts text into its tokens',
    async () => {
      const source = zeros(vocabSize);
      const folder = join(newFolder(), 'model');
      const options = { format: 'gguf', weightType: 'float16', shardBytesMax: 1e9, job: null } as const;
      const { files } = await exportModel(source, folder, options);
      expect(files.map(({ fileName }) => fileName)).toEqual(['model.gguf', 'relora_manifest.json']);
      if (typeof open === 'string') return;
      const model = await open(join(folder, 'model.gguf'));
      const tokenizer = await jsonTokenizer(source.tokenizerJson, 'huggingFace');
      const text = 'Once upon a time, 3 rivers – and a mill.';
      expect(model.tokenize(text)).toEqual(Array.from(await tokenizer.encode(text)));
      expect(model.endToken).toBe(0);
      await model.dispose();
    },
  );

  it('is exported in the layout of Hugging Face', async () => {
    const source = zeros(vocabSize);
    const folder = join(newFolder(), 'model');
    const options = { format: 'huggingFace', weightType: 'bfloat16', shardBytesMax: 1e9, job: null } as const;
    await exportModel(source, folder, options);
    expect(readFileSync(join(folder, 'tokenizer.json'), 'utf8')).toBe(source.tokenizerJson);
  });
});
