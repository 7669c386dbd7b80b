import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  runWeights,
  openDevice,
  type ExportManifest,
  type GgufType,
  type TrainingRun,
} from '@relora/engine';
import { Dataset, jsonTokenizer, prepareDataset, type Tokenizer } from '@relora/engine/data';
import { findLlamaCpp } from './llamaCpp.js';
import { licenseDataset, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const bytesDataset = licenseDataset(newFolder);
const open = await findLlamaCpp();
if (typeof open === 'string') console.warn(`Skipped: the tests with llama.cpp, since ${open}`);

const texts = [
  'You may reproduce and distribute copies of the Work',
  "It's 2026, isn't it? They'll say 12345 or 3.14159!",
  'Ein Weißdorn – 中文字 и нещо 🚀😶‍🌫️ كلمة',
  '  two  spaces\n\n\tand\ttabs \r\n end   ',
  '',
  'next line\u0085 zero width\u200b soft\u00adhyphen',
];
const withSpecialToken = 'before<|endoftext|>after';

/** Ends in the middle of a cycle unless another step is given. */
async function trainedRun(
  changes: Parameters<typeof tinySpec>[0],
  dataset: Dataset,
  lastStep = 15,
): Promise<TrainingRun> {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const spec = tinySpec(changes);
  const run = await beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1 });
  await runLoop(run, (event) => event.kind === 'step' && event.step === lastStep);
  return run;
}

/** Within a short text some frequencies are unchanged, some stretched, and some in between. */
const scaledRotary = {
  factor: 8,
  lowFrequencyFactor: 1,
  highFrequencyFactor: 4,
  originalMaxPositionEmbeddings: 32,
};

async function exported(run: TrainingRun, weightType: GgufType) {
  const folder = join(newFolder(), 'model');
  const options = { format: 'gguf', weightType, shardBytesMax: 1e9, job: null } as const;
  await exportModel(await runWeights(run), folder, options);
  const manifest = JSON.parse(readFileSync(join(folder, 'relora_manifest.json'), 'utf8')) as ExportManifest;
  return { path: join(folder, 'model.gguf'), manifest };
}

async function ourLogits({ model }: TrainingRun, tokens: readonly number[]): Promise<Float32Array> {
  const { vocabSize } = model.config;
  const logits = await model.logits(Int32Array.from(tokens), 1, tokens.length, { precision: 'float32' });
  return logits.subarray((tokens.length - 1) * vocabSize);
}

const largest = (logits: Float32Array) => logits.indexOf(Math.max(...logits));

/** The greedy continuation; each token is judged on the sequence so far. */
async function continued(
  logitsOf: (tokens: number[]) => Float32Array | Promise<Float32Array>,
  prompt: readonly number[],
): Promise<number[]> {
  const tokens = [...prompt];
  for (let i = 0; i < 16; i++) tokens.push(largest(await logitsOf(tokens)));
  return tokens;
}

async function expectSameTokens(path: string, tokenizer: Tokenizer, texts: string[]): Promise<void> {
  if (typeof open === 'string') return;
  const model = await open(path);
  for (const text of texts) expect(model.tokenize(text)).toEqual(Array.from(await tokenizer.encode(text)));
  expect(model.endToken).toBe(tokenizer.endOfTextId);
  expect(model.beginToken).toBe(tokenizer.endOfTextId);
  expect(model.addsBeginToken).toBe(true);
  await model.dispose();
}

describe.skipIf(typeof open === 'string')('llama.cpp', () => {
  // For float32 only the order of sums differs; with narrower weights llama.cpp rounds inputs of products to their type.
  it.each([
    ['float32', 1e-4],
    ['float16', 2e-2],
    ['bfloat16', 1e-1],
    ['q8_0', 1e-1],
  ] as const)(
    'computes what we compute from weights of %s and continues a text alike',
    async (type, tolerance) => {
      const run = await trainedRun({}, await bytesDataset());
      const { path } = await exported(run, type);
      const model = await (open as Exclude<typeof open, string>)(path);
      const prompt = [256, ...Buffer.from('You may reproduce and')];
      const { vocabSize } = run.model.config;
      const theirs = await model.logits(prompt, vocabSize);
      const difference = (await ourLogits(run, prompt)).reduce(
        (most, value, i) => Math.max(most, Math.abs(value - theirs[i]!)),
        0,
      );
      expect(difference).toBeLessThan(tolerance);
      const ours = await continued((tokens) => ourLogits(run, tokens), prompt);
      expect(await continued((tokens) => model.logits(tokens, vocabSize), prompt)).toEqual(ours);
      await model.dispose();
      disposeRun(run);
    },
  );

  it.each([
    ['a head that is its embedding', { tieWordEmbeddings: true }],
    ['the rotary embedding of Llama 3.1', { ropeScaling: scaledRotary }],
    ['biases on queries, keys and values', { attentionBias: true }],
    ['both of these', { attentionBias: true, ropeScaling: scaledRotary }],
    ['heads of a size of their own', { headDim: 12 }],
    ['norms of heads', { headDim: 12, qkNorm: true }],
    ['layers without a rotary embedding', { numHiddenLayers: 5, noRopeInterval: 4 }],
  ])('computes a model with %s', async (_, changes) => {
    const run = await trainedRun({ model: changes }, await bytesDataset());
    const { path } = await exported(run, 'float32');
    const model = await (open as Exclude<typeof open, string>)(path);
    const prompt = [256, ...Buffer.from('You may reproduce and distribute copies')];
    const theirs = await model.logits(prompt, 257);
    (await ourLogits(run, prompt)).forEach((value, i) =>
      expect(Math.abs(value - theirs[i]!)).toBeLessThan(1e-4),
    );
    await model.dispose();
    disposeRun(run);
  });

  it.each([
    ['another interval than 4', { noRopeInterval: 2 }, /a no_rope_interval of 4, as llama.cpp's smollm3 has/],
    ['norms of heads and scaled frequencies', { qkNorm: true, ropeScaling: scaledRotary }, /no rope_scaling/],
  ])('is given no model that it would compute otherwise: %s', async (_, model, message) => {
    const run = await trainedRun({ model }, await bytesDataset(), 0);
    await expect(exported(run, 'float32')).rejects.toThrow(message);
    disposeRun(run);
  });

  it('cuts text into the tokens that we cut it into: bytes', async () => {
    const dataset = await bytesDataset();
    const run = await trainedRun({}, dataset, 0);
    const { path, manifest } = await exported(run, 'float16');
    expect(manifest.tokenizer).toEqual({ preTokenizer: 'gpt-2', isExact: true });
    await expectSameTokens(path, dataset.tokenizer, texts);
    disposeRun(run);
  });

  const gpt2Words = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const split = (Regex: string) => ({
    type: 'Sequence',
    pretokenizers: [
      { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
      { ...gpt2Words, use_regex: false },
    ],
  });
  const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
  const rest = '| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
  it.each([
    ['gpt-2', gpt2Words, false],
    [
      'smollm',
      { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, gpt2Words] },
      false,
    ],
    ['llama-bpe', split(`${contractions}|\\p{N}{1,3}${rest}`), true],
    ['dbrx', split(`${contractions}|\\p{N}{1,3}${rest}`), false],
    ['qwen2', split(`${contractions}|\\p{N}${rest}`), false],
  ] as const)(
    'and with a trained vocabulary whose words are cut as those of %s',
    async (name, words, ignores) => {
      const folder = join(newFolder(), 'dataset');
      const trained = await trainedTokenizer();
      trained.pre_tokenizer = words;
      trained.model.ignore_merges = ignores;
      const text = JSON.stringify(trained);
      const tokenizer = await jsonTokenizer(text, 'huggingFace');
      await prepareDataset(
        {
          files: [{ path: license, name: 'LICENSE', format: 'text', split: 'auto' }],
          outputFolder: folder,
          tokenizer: { kind: 'huggingFace', tokenizerJson: text },
          textField: 'text',
          heldOutShare: 0.1,
          seed: 1,
        },
        () => {},
        new AbortController().signal,
      );
      const dataset = await Dataset.open(folder, { verify: true });
      const model = { vocabSize: tokenizer.vocabularySize + 3 }; // rows without a token, as in many models
      const run = await trainedRun({ model }, dataset, 0);
      const { path, manifest } = await exported(run, 'q8_0');
      expect(manifest.tokenizer).toEqual({ preTokenizer: name, isExact: true });
      await expectSameTokens(path, tokenizer, [...texts, withSpecialToken]);
      disposeRun(run);
      await dataset.close();
    },
  );
});

const license = join(import.meta.dirname, '../../LICENSE');

async function trainedTokenizer(): Promise<{ pre_tokenizer: object; model: { ignore_merges: boolean } }> {
  const folder = join(newFolder(), 'trained');
  await prepareDataset(
    {
      files: [{ path: license, name: 'LICENSE', format: 'text', split: 'auto' }],
      outputFolder: folder,
      tokenizer: { kind: 'trainedBpe', vocabularySize: 500 },
      textField: 'text',
      heldOutShare: 0.1,
      seed: 1,
    },
    () => {},
    new AbortController().signal,
  );
  return JSON.parse(readFileSync(join(folder, 'tokenizer.json'), 'utf8')) as {
    pre_tokenizer: object;
    model: { ignore_merges: boolean };
  };
}
