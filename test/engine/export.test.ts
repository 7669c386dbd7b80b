import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { Tokenizer as HuggingFaceTokenizer } from 'tokenizers';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  loadModelFolder,
  openSafetensors,
  runWeights,
  openDevice,
  type Device,
  writeSafetensors,
  type ExportManifest,
  type TensorSource,
  type TrainingRun,
  type WeightType,
} from '@relora/engine';
import { licenseDataset, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const ids = Int32Array.from(Buffer.from('You may reproduce and'));

async function trainedRun(changes: Parameters<typeof tinySpec>[0] = {}): Promise<TrainingRun> {
  const spec = tinySpec(changes);
  const run = await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
  await runLoop(run, (event) => event.kind === 'step' && event.step === 15); // in the middle of a cycle
  return run;
}

const plain = { format: 'huggingFace', shardBytesMax: 1e9, job: 'jobs/license' } as const;

async function exported(run: TrainingRun, weightType: WeightType) {
  const folder = join(newFolder(), 'model');
  const { files } = await exportModel(await runWeights(run), folder, { ...plain, weightType });
  return { folder, files };
}

let device: Device;
beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
});

const logitsOf = (model: TrainingRun['model']) => model.logits(ids, 1, ids.length, { precision: 'float32' });

function largestDifference(one: Float32Array, other: Float32Array): number {
  return one.reduce((largest, value, i) => Math.max(largest, Math.abs(value - other[i]!)), 0);
}

describe('an exported model', () => {
  it.each([
    ['float32', 1e-4],
    ['float16', 2e-2],
    ['bfloat16', 1e-1],
  ] as const)('of %s loads again and computes the same', async (weightType, tolerance) => {
    const run = await trainedRun();
    const { folder } = await exported(run, weightType);
    const { model, tokenizer } = await loadModelFolder(device, folder);
    expect(model.config).toEqual(run.model.config);
    expect(largestDifference(await logitsOf(model), await logitsOf(run.model))).toBeLessThan(tolerance);
    expect(tokenizer!.vocabularySize).toBe(257);
    model.dispose();
    disposeRun(run);
  });

  it('is described by its manifest, and leaves the run undisturbed', async () => {
    const run = await trainedRun();
    const before = await weightsOf(run);
    const { folder, files } = await exported(run, 'bfloat16');
    expect(await weightsOf(run)).toEqual(before);
    expect(files.map(({ fileName }) => fileName).sort()).toEqual([
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'relora_manifest.json',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    for (const { fileName, sizeBytes, sha256 } of files) {
      expect(statSync(join(folder, fileName)).size).toBe(sizeBytes);
      expect(
        createHash('sha256')
          .update(readFileSync(join(folder, fileName)))
          .digest('hex'),
      ).toBe(sha256);
    }
    const manifest = JSON.parse(readFileSync(join(folder, 'relora_manifest.json'), 'utf8')) as ExportManifest;
    expect(manifest).toMatchObject({
      weightType: 'bfloat16',
      formatVersion: 2,
      format: 'huggingFace',
      lineage: { job: 'jobs/license', step: 16, cycle: 2, restartCount: 1, trainedTokens: 16 * 128 },
      files: expect.arrayContaining([
        expect.objectContaining({ fileName: 'model.safetensors', dtype: 'BF16' }),
      ]),
    });
    const packageJson = JSON.parse(
      readFileSync(new URL('../../engine/package.json', import.meta.url), 'utf8'),
    ) as { version: string };
    expect(manifest.engineVersion).toBe(packageJson.version);
    expect(manifest.castErrorMax).toBeGreaterThan(0);
    expect(manifest.castErrorMax).toBeLessThan(0.01);
    const again = exportModel(await runWeights(run), folder, { ...plain, weightType: 'bfloat16' });
    await expect(again).rejects.toThrow('EEXIST');
    disposeRun(run);
  });

  it('has the names, shapes and settings of a Hugging Face Llama', async () => {
    const run = await trainedRun({ model: { tieWordEmbeddings: true } });
    const { folder } = await exported(run, 'float16');
    const file = await openSafetensors(join(folder, 'model.safetensors'));
    expect(file.tensors.get('model.layers.1.mlp.down_proj.weight')).toMatchObject({
      dtype: 'F16',
      shape: [32, 48],
    });
    expect(file.tensors.get('model.layers.0.self_attn.k_proj.weight')!.shape).toEqual([16, 32]);
    expect(file.tensors.has('lm_head.weight')).toBe(false);
    await file.close();
    expect(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))).toMatchObject({
      architectures: ['LlamaForCausalLM'],
      torch_dtype: 'float16',
      num_key_value_heads: 2,
      tie_word_embeddings: true,
      eos_token_id: 256,
    });
    disposeRun(run);
  });

  it('has a tokenizer of bytes that Hugging Face reads as we do', async () => {
    const run = await trainedRun();
    const { folder } = await exported(run, 'float32');
    const tokenizer = HuggingFaceTokenizer.fromString(readFileSync(join(folder, 'tokenizer.json'), 'utf8'));
    const text = 'Ein Weißdorn – 中\n\t  \u0000';
    const encoding = await tokenizer.encode(text);
    expect(encoding.getIds()).toEqual([...Buffer.from(text)]);
    expect(await tokenizer.decode([...Buffer.from(text)], true)).toBe(text);
    expect(tokenizer.tokenToId('<|endoftext|>')).toBe(256);
    disposeRun(run);
  });

  it('can be the base of a new run', async () => {
    const run = await trainedRun();
    const { folder } = await exported(run, 'float32');
    const spec = tinySpec({ baseWeightsFolder: folder, warmStart: { stepCount: 0 } });
    const options = { device: run.device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 };
    const next = await beginRun({ ...options, spec });
    expect(largestDifference(await logitsOf(next.model), await logitsOf(run.model))).toBeLessThan(1e-4);
    expect(next.warnings).toEqual([]);
    const other = beginRun({ ...options, spec: { ...spec, model: { ...spec.model, rmsNormEps: 1e-5 } } });
    await expect(other).rejects.toThrow(/model\.rmsNormEps .*: expected 0\.00001, found 0\.000001/);
    [run, next].forEach(disposeRun);
  });

  it('warns as a base whose tokenizer gives other ids than the data set has', async () => {
    const run = await trainedRun();
    const { folder } = await exported(run, 'float32');
    const file = join(folder, 'tokenizer.json');
    const json = JSON.parse(readFileSync(file, 'utf8')) as { model: { vocab: Record<string, number> } };
    Object.assign(json.model.vocab, { e: json.model.vocab.a, a: json.model.vocab.e });
    writeFileSync(file, JSON.stringify(json));
    const spec = tinySpec({ baseWeightsFolder: folder, warmStart: { stepCount: 0 } });
    const options = { device: run.device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 };
    const next = await beginRun({ ...options, spec });
    expect(next.warnings.map(({ reason }) => reason)).toEqual(['TOKENIZER_DIFFERS']);
    [run, next].forEach(disposeRun);
  });
});

describe('a folder that is not a model we read is refused, with tensor, expected and found', () => {
  let source: string;
  beforeAll(async () => {
    const run = await trainedRun();
    source = (await exported(run, 'float32')).folder;
    disposeRun(run);
  });

  const norm = 'model.norm.weight';
  const cases: {
    name: string;
    config?: object;
    tensors?: (tensors: TensorSource[]) => TensorSource[];
    message: RegExp;
  }[] = [
    {
      name: 'another architecture',
      config: { architectures: ['GPT2LMHeadModel'] },
      message:
        /architectures: expected one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM, found \["GPT2LMHeadModel"\]/,
    },
    {
      name: 'a class that is known to compute more',
      config: { architectures: ['Gemma3ForCausalLM'] },
      message: /not computed of Gemma3ForCausalLM: norms behind attention and MLP, .* found/,
    },
    {
      name: 'what only another class has',
      config: { attn_logit_softcapping: 50 },
      message: /attn_logit_softcapping: expected null or none, found 50/,
    },
    {
      name: 'heads that cannot turn',
      config: { head_dim: 7 },
      message: /head_dim: expected an even number of at most 128, found 7/,
    },
    {
      name: 'heads larger than every device has',
      config: { hidden_size: 520, num_attention_heads: 4, head_dim: 130 },
      message: /num_attention_heads: expected heads of an even size of at most 128 .* 520, found 4/,
    },
    {
      name: 'layers without rotary embedding at no interval',
      config: {
        ...{ architectures: ['SmolLM3ForCausalLM'], model_type: 'smollm3' },
        no_rope_layers: [0, 1],
      },
      message: /no_rope_layers: expected 2 entries, 1 but for each n-th, which is 0, found \[0,1\]/,
    },
    {
      name: 'scaled rotary embedding',
      config: { rope_scaling: { rope_type: 'llama3', factor: 8 } },
      message: /rope_scaling.low_freq_factor: expected a number above 0, found none/,
    },
    {
      name: 'attention biases',
      config: { attention_bias: true },
      message: /attention_bias: expected false or none, found true/,
    },
    {
      name: 'a size that is no number',
      config: { hidden_size: '32' },
      message: /hidden_size: expected a whole number .* found "32"/,
    },
    {
      name: 'a vocabulary smaller than the tokenizer',
      config: { vocab_size: 200 },
      message: /vocab_size: expected at least 257, .* found 200/,
    },
    {
      name: 'a missing tensor',
      tensors: (all) => all.filter(({ name }) => name !== norm),
      message: /model\.norm\.weight: expected a tensor 32, found none/,
    },
    {
      name: 'a tensor too many',
      tensors: (all) => [...all, { ...all[0]!, name: 'extra' }],
      message: /extra: expected only tensors of a Llama model/,
    },
    {
      name: 'a wrong shape',
      tensors: (all) =>
        all.map((one) => (one.name.endsWith('k_proj.weight') ? { ...one, shape: [32, 16] } : one)),
      message: /k_proj\.weight: expected a tensor 16 x 32, found 32 x 16/,
    },
    {
      name: 'a value that is not finite',
      tensors: (all) =>
        all.map((one) =>
          one.name === norm ? { ...one, read: () => new Float32Array(32).fill(NaN, 7) } : one,
        ),
      message: /model\.norm\.weight: expected finite values, found NaN at position 7/,
    },
  ];

  it.each(cases)('$name', async ({ config, tensors, message }) => {
    const folder = join(newFolder(), 'copy');
    cpSync(source, folder, { recursive: true });
    if (config !== undefined) {
      const before = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as object;
      writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...before, ...config }));
    }
    if (tensors !== undefined) await rewrite(folder, tensors);
    const loading = loadModelFolder(device, folder);
    await expect(loading).rejects.toThrow(message);
    await expect(loading).rejects.toMatchObject({ reason: 'MODEL_FOLDER_INVALID' });
  });

  it.each(['config.json', 'tokenizer.json', 'model.safetensors.index.json', 'model.safetensors'])(
    'a pipe in the place of %s, which nobody writes to',
    async (name) => {
      const folder = join(newFolder(), 'copy');
      cpSync(source, folder, { recursive: true });
      rmSync(join(folder, name), { force: true });
      execFileSync('mkfifo', [join(folder, name)]);
      await expect(loadModelFolder(device, folder)).rejects.toThrow(/regular file/);
    },
  );

  it('but shards with an index are read', async () => {
    const folder = join(newFolder(), 'copy');
    cpSync(source, folder, { recursive: true });
    const whole = (await loadModelFolder(device, folder)).model;
    await split(folder);
    expect(existsSync(join(folder, 'model.safetensors'))).toBe(false);
    const { model } = await loadModelFolder(device, folder);
    expect(await logitsOf(model)).toEqual(await logitsOf(whole));
    rmSync(join(folder, 'model-2.safetensors'));
    await expect(loadModelFolder(device, folder)).rejects.toThrow(
      'model-2.safetensors: expected a file of weights, found none',
    );
    writeFileSync(
      join(folder, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: { [norm]: '../model.safetensors' } }),
    );
    await expect(loadModelFolder(device, folder)).rejects.toThrow(
      /plain names of .safetensors files, found "..\/model.safetensors"/,
    );
    [whole, model].forEach((each) => each.dispose());
  });

  /** Reads all tensors of a folder's weights into memory and moves the file away. */
  async function takeTensors(folder: string): Promise<TensorSource[]> {
    const path = join(folder, 'model.safetensors');
    const file = await openSafetensors(path);
    const tensors: TensorSource[] = [];
    for (const [name, { shape }] of file.tensors) {
      const values = await file.readFloat32(name);
      tensors.push({ name, shape, dtype: 'F32', read: () => values });
    }
    await file.close();
    renameSync(path, `${path}.before`);
    return tensors;
  }

  async function rewrite(folder: string, change: (tensors: TensorSource[]) => TensorSource[]): Promise<void> {
    await writeSafetensors(join(folder, 'model.safetensors'), change(await takeTensors(folder)));
  }

  async function split(folder: string): Promise<void> {
    const tensors = await takeTensors(folder);
    const map = Object.fromEntries(tensors.map(({ name }, i) => [name, `model-${1 + (i % 2)}.safetensors`]));
    for (const shard of new Set(Object.values(map))) {
      await writeSafetensors(
        join(folder, shard),
        tensors.filter(({ name }) => map[name] === shard),
      );
    }
    writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }));
  }
});
