import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  runWeights,
  openDevice,
  type ExportOptions,
  type TrainingRun,
} from '@relora/engine';
import { licenseDataset, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const script = fileURLToPath(new URL('interchange.py', import.meta.url));

const python = process.env.RELORA_TEST_PYTHON ?? 'python3';
const modules = ['torch', 'transformers', 'peft', 'gguf', 'safetensors'];
const probe = spawnSync(python, ['-c', `import ${modules.join(', ')}`], { encoding: 'utf8' });
const isMissing = probe.status !== 0;
if (isMissing) {
  const why = probe.error?.message ?? probe.stderr.trim().split('\n').at(-1);
  console.warn(`Skipped: the tests with ${modules.join(', ')} in ${python} (RELORA_TEST_PYTHON): ${why}`);
}

interface Answer {
  merged: number[];
  tokens: number[];
  adapter: number[];
  unloaded: number[];
  gguf: {
    metadata: Record<string, unknown>;
    tokenCount: number;
    types: Record<string, string>;
    shapes: Record<string, number[]>;
    differingBytes: number;
    errorMax: number;
  };
}

const text = 'You may reproduce and';
const ids = [...Buffer.from(text)];

/** Within a short text some frequencies are unchanged, some stretched, and some in between. */
const scaledRotary = {
  factor: 8,
  lowFrequencyFactor: 1,
  highFrequencyFactor: 4,
  originalMaxPositionEmbeddings: 16,
};

function ask(request: Record<string, unknown>): Answer {
  const { status, stdout, stderr } = spawnSync(python, [script], {
    input: JSON.stringify({ ids, text, ...request }),
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (status !== 0) throw new Error(stderr.slice(-2000));
  return JSON.parse(stdout.slice(stdout.indexOf('{'))) as Answer;
}

/** Stopped in the middle of a cycle. */
async function trainedRun(changes: Parameters<typeof tinySpec>[0] = {}): Promise<TrainingRun> {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const spec = tinySpec(changes);
  const run = await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
  await runLoop(run, (event) => event.kind === 'step' && event.step === 15);
  return run;
}

async function exported(run: TrainingRun, options: Partial<ExportOptions>): Promise<string> {
  const folder = join(newFolder(), 'model');
  const defaults = { format: 'huggingFace', weightType: 'float32', shardBytesMax: 1e9, job: null } as const;
  await exportModel(await runWeights(run), folder, { ...defaults, ...options });
  return folder;
}

/** For sums of at most 48 products in another order, two layers: far above their error, far below the effect of any wrong weight. */
const tolerance = 1e-4;

async function expectOurs(run: TrainingRun, theirs: number[], within = tolerance): Promise<void> {
  const ours = await run.model.logits(Int32Array.from(ids), 1, ids.length, { precision: 'float32' });
  expect(theirs).toHaveLength(ours.length);
  const largest = ours.reduce((most, value, i) => Math.max(most, Math.abs(value - theirs[i]!)), 0);
  expect(largest).toBeLessThan(within);
}

describe.skipIf(isMissing)('transformers on PyTorch', () => {
  it.each([
    ['grouped queries', {}],
    ['a head that is the embedding', { model: { tieWordEmbeddings: true } }],
    ['the rotary embedding of Llama 3.1', { model: { ropeScaling: scaledRotary } }],
    ['biases on queries, keys and values', { model: { attentionBias: true } }],
    ['heads of a size of their own', { model: { headDim: 12 } }],
    ['norms of heads', { model: { headDim: 12, qkNorm: true } }],
    ['a layer without a rotary embedding', { model: { noRopeInterval: 2 } }],
  ])(
    'computes our logits from the merged model, here with %s, and reads our tokenizer',
    async (_, changes) => {
      const run = await trainedRun(changes);
      const answer = ask({ merged: await exported(run, { shardBytesMax: 20_000 }) });
      await expectOurs(run, answer.merged);
      expect(answer.tokens).toEqual(ids);
      disposeRun(run);
    },
  );

  it.each([
    ['float16', 2e-2],
    ['bfloat16', 1e-1],
  ] as const)('computes them from %s within its rounding', async (weightType, within) => {
    const run = await trainedRun();
    await expectOurs(run, ask({ merged: await exported(run, { weightType }) }).merged, within);
    disposeRun(run);
  });
});

describe.skipIf(isMissing)('PEFT', () => {
  it.each([
    ['a constant scale', {}],
    ['biases beside it', { model: { attentionBias: true } }],
    ['norms of heads beside it', { model: { headDim: 12, qkNorm: true } }],
    ['a layer without a rotary embedding', { model: { noRopeInterval: 2 } }],
    ['a trainable scale', { adapter: { trainableScale: true } }],
    ['dropout and two modules', { adapter: { dropout: 0.1, targetModules: ['q_proj', 'down_proj'] } }],
  ] as const)('loads the adapter of a cycle on its base, here with %s', async (_, changes) => {
    const run = await trainedRun(changes as Parameters<typeof tinySpec>[0]);
    const answer = ask({ peft: await exported(run, { format: 'peft', shardBytesMax: 20_000 }) });
    await expectOurs(run, answer.adapter);
    await expectOurs(run, answer.unloaded);
    disposeRun(run);
  });
});

describe.skipIf(isMissing)('gguf', () => {
  it('reads our file, whose q8_0 has the bits of its own quantizer', async () => {
    const run = await trainedRun();
    const folder = await exported(run, {});
    const gguf = join(await exported(run, { format: 'gguf', weightType: 'q8_0' }), 'model.gguf');
    const answer = ask({ gguf, weights: join(folder, 'model.safetensors') }).gguf;
    expect(answer.metadata).toMatchObject({
      'general.architecture': 'llama',
      'general.file_type': 7,
      'llama.attention.head_count_kv': 2,
      'llama.context_length': 64,
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.eos_token_id': 256,
    });
    expect(answer.tokenCount).toBe(257);
    expect(answer.types).toMatchObject({
      'token_embd.weight': 'Q8_0',
      'blk.1.ffn_down.weight': 'F16', // rows of 48
      'output_norm.weight': 'F32',
    });
    expect(answer.shapes['blk.0.attn_k.weight']).toEqual([32, 16]);
    expect(answer.differingBytes).toBe(0);
    disposeRun(run);
  });
});
