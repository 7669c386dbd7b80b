import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer as Library } from 'tokenizers';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import {
  beginRun,
  checkModelFolder,
  disposeRun,
  exportModel,
  loadModelFolder,
  runWeights,
  saveCheckpoint,
  openDevice,
  type Device,
  withCheckpointWeights,
  writeSafetensors,
  type TrainingRun,
} from '@relora/engine';
import { Dataset, jsonTokenizer, prepareDataset } from '@relora/engine/data';
import { endTokensOf } from '@relora/engine/plan';
import { byteLevelTokenizerJson } from '../../engine/dist/data/trainBpe.js';
import { failure, sentences } from './dataFixtures.js';
import { ofKind, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();

const python = process.env.RELORA_TEST_PYTHON;
const hasTransformers =
  python !== undefined && spawnSync(python, ['-c', 'import transformers, tokenizers, jinja2']).status === 0;

const shape = {
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 304,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
};

interface Added {
  id: number;
  content: string;
}

/** Byte-level BPE of bytes and the given texts, with consecutive ids. */
function tokenizerJson(texts: string[], added: Added[], changes: object = {}): string {
  const bytes = JSON.parse(readFileSync(join(prepared, 'tokenizer.json'), 'utf8')) as {
    model: { vocab: Record<string, number> };
  };
  const alphabet = Object.keys(bytes.model.vocab).filter((token) => token !== '<|endoftext|>');
  const vocab = Object.fromEntries([...texts, ...alphabet].map((token, id) => [token, id]));
  const plain = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return JSON.stringify({
    ...bytes,
    added_tokens: added.map((token) => ({ ...token, ...plain })),
    model: { ...bytes.model, vocab, merges: [] },
    ...changes,
  });
}

/** A data set with the tokenizer.json of bytes. */
const prepared = newFolder();
writeFileSync(join(prepared, 'tokenizer.json'), byteLevelTokenizerJson([]));

async function prepare(tokenizer: Parameters<typeof prepareDataset>[0]['tokenizer']): Promise<Dataset> {
  const folder = newFolder();
  writeFileSync(join(folder, 'text.txt'), sentences(300));
  const outputFolder = join(folder, 'prepared');
  const files = [
    { path: join(folder, 'text.txt'), name: 'text.txt', format: 'text', split: 'auto' } as const,
  ];
  const options = { files, outputFolder, tokenizer, textField: 'text', heldOutShare: 0.1, seed: 1 };
  await prepareDataset(options, () => {}, new AbortController().signal);
  const dataset = await Dataset.open(outputFolder, { verify: false });
  onTestFinished(async () => await dataset.close());
  return dataset;
}

/** A model with its own weights and the given additional files. */
async function modelFolder(
  files: Record<string, string>,
  config: Record<string, unknown>,
  { head }: { head?: 'own' | 'same' | 'none' } = {},
): Promise<string> {
  const folder = newFolder();
  const random = (count: number, seed: number) =>
    Float32Array.from({ length: count }, (_, i) => Math.sin(i * 12.9898 + seed) * 0.1);
  const { hidden_size: hidden, intermediate_size: mlp, vocab_size: vocab } = shape;
  const tensors: [string, number[]][] = [['model.embed_tokens.weight', [vocab, hidden]]];
  for (const block of [0, 1]) {
    const name = (part: string) => `model.layers.${block}.${part}.weight`;
    tensors.push([name('input_layernorm'), [hidden]], [name('post_attention_layernorm'), [hidden]]);
    for (const part of ['q_proj', 'o_proj']) tensors.push([name(`self_attn.${part}`), [hidden, hidden]]);
    for (const part of ['k_proj', 'v_proj']) tensors.push([name(`self_attn.${part}`), [hidden / 2, hidden]]);
    for (const part of ['gate_proj', 'up_proj']) tensors.push([name(`mlp.${part}`), [mlp, hidden]]);
    tensors.push([name('mlp.down_proj'), [hidden, mlp]]);
  }
  tensors.push(['model.norm.weight', [hidden]]);
  if (head !== 'none') tensors.push(['lm_head.weight', [vocab, hidden]]);
  await writeSafetensors(
    join(folder, 'model.safetensors'),
    tensors.map(([name, sizes], index) => ({
      name,
      shape: sizes,
      dtype: 'F32' as const,
      read: () =>
        random(
          sizes.reduce((a, b) => a * b),
          name === 'lm_head.weight' && head === 'same' ? 0 : index,
        ),
    })),
  );
  const whole = { architectures: ['LlamaForCausalLM'], model_type: 'llama', ...shape, ...config };
  for (const [name, text] of Object.entries({ 'config.json': JSON.stringify(whole), ...files }))
    writeFileSync(join(folder, name), text);
  return folder;
}

async function begin(folder: string, dataset: Dataset, changes: object = {}): Promise<TrainingRun> {
  const { config } = await checkModelFolder(folder, { values: false });
  const spec = {
    ...tinySpec({ model: config, baseWeightsFolder: folder, batch: { sequenceLength: 32 }, ...changes }),
  };
  spec.warmStart = { ...spec.warmStart, stepCount: 0 };
  const run = await beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1 });
  onTestFinished(() => disposeRun(run));
  return run;
}

const options = { format: 'huggingFace', weightType: 'float32', shardBytesMax: 1e9, job: null } as const;

async function exported(run: TrainingRun, format: 'huggingFace' | 'gguf' = 'huggingFace'): Promise<string> {
  const folder = join(newFolder(), 'model');
  await exportModel(await runWeights(run), folder, { ...options, format });
  return folder;
}

const read = (folder: string, name: string) => readFileSync(join(folder, name), 'utf8');
const readJson = (folder: string, name: string) => JSON.parse(read(folder, name)) as Record<string, unknown>;

/** How transformers reads an export. */
function askTransformers(folder: string): {
  eosToken: string;
  eosId: number;
  length: number;
  configEos: unknown;
  generationEos: unknown;
  chat: string | null;
  padding: string;
  ids: number[];
} {
  const program = `
import json, sys
from transformers import AutoTokenizer, AutoConfig, GenerationConfig
t = AutoTokenizer.from_pretrained(sys.argv[1]); g = GenerationConfig.from_pretrained(sys.argv[1])
chat = t.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) if t.chat_template else None
print(json.dumps(dict(eosToken=t.eos_token, eosId=t.eos_token_id, length=len(t), chat=chat, padding=t.padding_side,
  configEos=AutoConfig.from_pretrained(sys.argv[1]).eos_token_id, generationEos=g.eos_token_id,
  ids=t("the river", add_special_tokens=False)["input_ids"])))`;
  const answer = execFileSync(python!, ['-c', program, folder], { encoding: 'utf8', stdio: 'pipe' });
  return JSON.parse(answer.slice(answer.lastIndexOf('\n{') + 1)) as ReturnType<typeof askTransformers>;
}

let device: Device;
beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
});

describe('the token that ends a text', () => {
  it('is what config.json says, of a list the one that its tokenizer uses, then what generation_config.json says', () => {
    const end = (config: object, generation?: object, tokenizer?: object) =>
      endTokensOf({
        'config.json': JSON.stringify(config),
        ...(generation && { 'generation_config.json': JSON.stringify(generation) }),
        ...(tokenizer && { 'tokenizer_config.json': JSON.stringify(tokenizer) }),
      });
    expect(end({ eos_token_id: 3 }, { eos_token_id: 4 })).toEqual({ ids: [3], name: null });
    expect(end({ eos_token_id: null }, { eos_token_id: [4, 5] })).toEqual({ ids: [4, 5], name: null });
    expect(end({}, undefined, { eos_token: { content: '</s>', lstrip: false } })).toEqual({
      ids: [],
      name: '</s>',
    });
    expect(endTokensOf({ 'config.json': '[', 'generation_config.json': '3' })).toEqual({
      ids: [],
      name: null,
    });
  });

  it('is taken with every id and name, not from a list of names alone', async () => {
    const json = tokenizerJson(['<stop>', '<pad>'], [{ id: 1, content: '<pad>' }]);
    const endOf = async (ids: number[], name: string | null = null) =>
      (await jsonTokenizer(json, 'huggingFace', { endTokens: { ids, name } })).endOfTextId;
    expect(await endOf([0])).toBe(0);
    expect(await endOf([1, 0])).toBe(1);
    expect(await endOf([1, 0], '<stop>')).toBe(0);
    expect(await endOf([1], '<stop>')).toBe(1);
    expect(await endOf([], '<stop>')).toBe(0);
    const { message } = await failure(endOf([4000]), 'TOKENIZER_INVALID');
    expect(message).toBe(
      'tokenizer.json, eos_token_id: expected the id of a token of tokenizer.json, got 4000',
    );
    await failure(endOf([]), 'TOKENIZER_INVALID');
  });

  it('that only the vocabulary has is the same in training, in the export and in transformers', async () => {
    const json = tokenizerJson(['<unk>', '</s>'], []);
    const folder = await modelFolder({ 'tokenizer.json': json }, { eos_token_id: 1, bos_token_id: 0 });
    const dataset = await prepare({
      kind: 'huggingFace',
      tokenizerJson: json,
      endTokens: { ids: [1], name: null },
    });
    expect(dataset.tokenizer.endOfTextId).toBe(1);
    const run = await begin(folder, dataset);
    expect(run.warnings).toEqual([]);
    const out = await exported(run);
    expect(readJson(out, 'config.json')).toMatchObject({ eos_token_id: 1, bos_token_id: 0 });
    expect(readJson(out, 'tokenizer_config.json')).toMatchObject({ eos_token: '</s>' });
    expect((await loadModelFolder(device, out)).tokenizer!.endOfTextId).toBe(1);
    if (!hasTransformers) return;
    const there = askTransformers(out);
    expect(there).toMatchObject({ eosToken: '</s>', eosId: 1, length: 258, configEos: 1 });
    expect(there.ids).toEqual(Array.from(await dataset.tokenizer.encode('the river')));
  });
});

describe('what a model brings beside its weights', () => {
  const names = ['<|endoftext|>', '<|turn|>'];
  const json = () =>
    tokenizerJson(
      names,
      names.map((content, id) => ({ id, content })),
    );
  const template = "{% for m in messages %}{{ m['content'] }}{% endfor %}";
  const files = () => ({
    'tokenizer.json': json(),
    'generation_config.json': '{"bos_token_id": 0, "eos_token_id": [1, 0],  "temperature": 0.6}',
    'chat_template.jinja': template,
    'special_tokens_map.json': '{"eos_token": "<|endoftext|>"}',
    'tokenizer_config.json': JSON.stringify({
      tokenizer_class: 'PreTrainedTokenizerFast',
      eos_token: '<|endoftext|>',
      padding_side: 'left',
      add_bos_token: false,
    }),
  });
  const endTokens = () => endTokensOf({ ...files(), 'config.json': '{"eos_token_id": [1, 0]}' });

  it('goes through training, checkpoints and another trainer into the export, byte for byte', async () => {
    const folder = await modelFolder(files(), { eos_token_id: [1, 0], bos_token_id: 0, pad_token_id: 1 });
    const dataset = await prepare({ kind: 'huggingFace', tokenizerJson: json(), endTokens: endTokens() });
    const run = await begin(folder, dataset);
    const out = await exported(run);
    const same = [
      'generation_config.json',
      'chat_template.jinja',
      'special_tokens_map.json',
      'tokenizer_config.json',
    ];
    for (const name of same) expect(read(out, name), name).toBe(read(folder, name));
    const ids = { eos_token_id: [1, 0], bos_token_id: 0, pad_token_id: 1 };
    expect(readJson(out, 'config.json')).toMatchObject(ids);

    await runLoop(run, (event) => event.kind === 'step' && event.step === 1);
    const { path, manifestSha256 } = await saveCheckpoint(run);
    const fromCheckpoint = join(newFolder(), 'model');
    await withCheckpointWeights(device, path, dataset, { manifestSha256 }, async (source) =>
      exportModel(source, fromCheckpoint, options),
    );
    for (const name of same) expect(read(fromCheckpoint, name), name).toBe(read(folder, name));
    const { spec } = run;
    const again = { spec, device, dataset, runFolder: run.folder, attempt: 2, checkpointPath: path };
    const resumed = await beginRun(again);
    onTestFinished(() => disposeRun(resumed));
    expect(read(await exported(resumed), 'chat_template.jinja')).toBe(template);
    const gguf = read(await exported(run, 'gguf'), 'model.gguf');
    expect(gguf).toContain('tokenizer.chat_template');
    expect(gguf).toContain(template);
    expect(gguf).toContain('tokenizer.ggml.eot_token_id');
    if (!hasTransformers) return;
    expect(askTransformers(out)).toMatchObject({
      eosToken: '<|endoftext|>',
      eosId: 0,
      length: 258,
      configEos: [1, 0],
      generationEos: [1, 0],
      chat: 'hello',
      padding: 'left',
    });
  });

  it('has the templates of its folder, but none that lie outside of the allowed folders', async () => {
    const folder = await modelFolder(files(), {});
    const templates = join(folder, 'additional_chat_templates');
    const outside = newFolder();
    const kept = async (beneath: string[] | null) => {
      const { model, modelFiles } = await loadModelFolder(device, folder, { beneath });
      model.dispose();
      return Object.keys(modelFiles).filter((name) => name.startsWith('additional_chat_templates/'));
    };
    mkdirSync(templates);
    for (const name of ['rag.jinja', 'notes.txt', '.hidden.jinja'])
      writeFileSync(join(templates, name), 'text');
    writeFileSync(join(outside, 'tool_use.jinja'), 'secret');
    symlinkSync(join(outside, 'tool_use.jinja'), join(templates, 'tool_use.jinja'));
    const rag = 'additional_chat_templates/rag.jinja';
    expect(await kept([folder])).toEqual([rag]);
    expect(await kept([folder, outside])).toEqual([rag, 'additional_chat_templates/tool_use.jinja']);

    for (let count = 0; count < 16; count++) writeFileSync(join(templates, `t${count}.jinja`), 'text');
    const reason = 'MODEL_FOLDER_INVALID';
    await expect(kept([folder])).rejects.toMatchObject({
      reason,
      message: expect.stringContaining('at most 16 templates') as string,
    });
    rmSync(templates, { recursive: true });
    symlinkSync(outside, templates);
    expect(await kept([folder])).toEqual([]);
    rmSync(templates);
    writeFileSync(templates, 'no folder');
    await expect(kept([folder])).rejects.toMatchObject({ reason });
  });

  it('is changed in what the job changed: another token at the end of texts', async () => {
    const folder = await modelFolder(files(), { eos_token_id: 1 });
    const dataset = await prepare({ kind: 'huggingFace', tokenizerJson: json() }); // <|endoftext|>, by its name
    const run = await begin(folder, dataset);
    expect(run.warnings.map(({ reason }) => reason)).toEqual(['END_OF_TEXT_DIFFERS']);
    const out = await exported(run);
    expect(readJson(out, 'config.json')).toMatchObject({ eos_token_id: 0 });
    expect(read(out, 'chat_template.jinja')).toBe(template);
  });

  it('is left out where the data set has another tokenizer', async () => {
    const folder = await modelFolder(files(), { eos_token_id: [1, 0] });
    const run = await begin(folder, await prepare({ kind: 'bytes' }));
    expect(run.warnings.map(({ reason }) => reason)).toEqual(['TOKENIZER_DIFFERS']);
    const out = await exported(run);
    expect(readJson(out, 'config.json')).toMatchObject({ eos_token_id: 256, bos_token_id: 256 });
    expect(readJson(out, 'generation_config.json')).toEqual({ eos_token_id: 256, bos_token_id: 256 });
  });
});

describe('a model that is called tied', () => {
  const tied = { tie_word_embeddings: true };

  it('and has a head of its own is loaded with it, with a warning, and computes as one that is not called so', async () => {
    const [wrong, right] = [await modelFolder({}, tied), await modelFolder({}, {})];
    const report = await checkModelFolder(wrong, { values: false });
    expect(report.config.tieWordEmbeddings).toBe(false);
    expect(report.warnings.map(({ reason }) => reason)).toEqual(['HEAD_NOT_TIED']);
    const dataset = await prepare({ kind: 'bytes' });
    const [one, other] = [await begin(wrong, dataset), await begin(right, dataset)];
    expect(one.warnings.map(({ reason }) => reason)).toEqual(['HEAD_NOT_TIED']);
    const first = async (run: TrainingRun) =>
      ofKind(await runLoop(run, (event) => event.kind === 'step'), 'step')[0]!.loss;
    expect(await first(one)).toBe(await first(other));
    expect(readJson(await exported(one), 'config.json').tie_word_embeddings).toBe(false);
  });

  it.each(['same', 'none'] as const)('and is stays so: a head that is %s', async (head) => {
    const report = await checkModelFolder(await modelFolder({}, tied, { head }), { values: true });
    expect(report).toMatchObject({ config: { tieWordEmbeddings: true }, warnings: [] });
  });

  it('stays so in a job that was stored so, whatever its head', async () => {
    const { model } = await loadModelFolder(device, await modelFolder({}, tied), { isTied: true });
    expect(model.config.tieWordEmbeddings).toBe(true);
    model.dispose();
  });
});

describe('added tokens', () => {
  const added = (id: number) => [
    { id: 0, content: '<|endoftext|>' },
    { id, content: '<|im_end|>' },
  ];
  const text = (id: number) => tokenizerJson(['<|endoftext|>'], added(id));

  it('have the ids that Hugging Face gives them, or are refused', async () => {
    // The library ignores what the file says.
    expect(Library.fromString(text(650)).tokenToId('<|im_end|>')).toBe(257);
    const { message } = await failure(jsonTokenizer(text(650), 'huggingFace'), 'TOKENIZER_INVALID');
    expect(message).toBe(
      'tokenizer.json, added_tokens[1].id: expected 257, as Hugging Face numbers "<|im_end|>", got 650',
    );
    expect(Array.from(await (await jsonTokenizer(text(257), 'huggingFace')).encode('<|im_end|>'))).toEqual([
      257,
    ]);
  });

  it('with or without a place in the vocabulary have the ids of the library, in any order', async () => {
    const vocabulary = ['<|endoftext|>', '<a>', '<b>'];
    const lists = [
      [0, 259, 260],
      [259, 0, 260],
      [259, 1, 2, 260],
      [2, 259, 259],
      [260, 259],
      [259, 261],
    ];
    for (const ids of lists) {
      const list = ids.map((id, index) => ({
        id,
        content: vocabulary[id] ?? `<new ${id} ${ids.indexOf(id) === index}>`,
      }));
      const json = tokenizerJson(vocabulary, list);
      const library = Library.fromString(json);
      const isEqual = list.every(({ id, content }) => library.tokenToId(content) === id);
      const taken = await jsonTokenizer(json, 'huggingFace').then(
        () => true,
        () => false,
      );
      expect([ids, taken]).toEqual([ids, isEqual]);
    }
  });
});
