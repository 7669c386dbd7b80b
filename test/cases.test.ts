import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DatasetFailedError, ExportFormat, JobKind, type Dataset, type UploadOptions } from '@relora/sdk';
import { afterAll, describe, expect, it } from 'vitest';
import { tinyText } from './e2e/tinyJob.js';
import { realServer } from './sdk/realServer.js';

/**
 * Files that once caused errors, on a real server. The fixtures are without weights, which are created here; a folder of such files that
 * TEST_CASES names is tested too, and must be complete (`npm run test:cases FOLDER`).
 */
const kept = fileURLToPath(new URL('fixtures/cases/', import.meta.url));
const named = process.env.TEST_CASES;

const made = mkdtempSync(join(tmpdir(), 'relora-cases-'));
afterAll(() => rmSync(made, { recursive: true, force: true }));
cpSync(kept, made, { recursive: true });
for (const folder of ['tied-head', 'eos-in-vocabulary', 'chat-folder'])
  writeFileSync(join(made, folder, 'model.safetensors'), smallLlama(608, 32, 64, 2, 16));

const folders = [['the fixtures', made], ...(named === undefined ? [] : [[named, named]])] as [
  string,
  string,
][];

describe.each(folders)('of %s', (_, folder) => {
  const file = (name: string): string => join(folder, name);
  type Client = Awaited<ReturnType<typeof realServer>>['client'];

  const upload = async (client: Client, name: string, spec: UploadOptions['spec'] = {}): Promise<Dataset> =>
    await client.uploadDataset({ files: [{ path: file(name) }], spec: { heldOutShare: 0, ...spec } });

  const refusal = async (upload: Promise<Dataset>): Promise<string> =>
    await upload.then(
      () => 'ready',
      (error: unknown) => {
        if (error instanceof DatasetFailedError) return error.message;
        throw error;
      },
    );

  it('data are read as others read them', { timeout: 600_000 }, async () => {
    const { client } = await realServer();
    const documents = async (name: string) => (await upload(client, name)).train?.documentCount;
    for (const name of ['dict_filtered', 'nested_int_first', 'ner_required'])
      expect(await documents(`parquet/${name}.parquet`), name).toBe(40);
    expect(await documents('json-lines/lines.json')).toBe(3);
    expect(await documents('json-lines/nan.jsonl')).toBeGreaterThan(0);

    expect(await refusal(upload(client, 'parquet/nulls.parquet'))).toMatch(/row \d+.*null/);
    const without = await upload(client, 'parquet/nulls.parquet', { skipInvalidCount: 1 });
    expect(without.train?.documentCount).toBe(41);
    expect(without.skippedRows).toMatchObject({ rowCount: 1, totalRowCount: 42 });
    expect(await refusal(upload(client, 'json-lines/nullrow.jsonl'))).toMatch(/line \d+ at byte \d+.*null/);
    const lines = await upload(client, 'json-lines/nullrow.jsonl', { skipInvalidCount: 1 });
    expect(lines.skippedRows?.rowCount).toBe(1);
  });

  it('prompts without room for an answer are warned of', { timeout: 600_000 }, async () => {
    const { client } = await realServer();
    const dataset = await upload(client, 'json-lines/longprompt.jsonl', {
      promptField: 'prompt',
      completionField: 'completion',
    });
    expect(dataset.warnings.map(({ reason }) => reason)).toContain('PROMPTS_LONG');
    const job = await client.createJob({
      kind: JobKind.FULL_RANK,
      model: {
        config: { hiddenSize: 32, intermediateSize: 64, numHiddenLayers: 1, numAttentionHeads: 2 },
      },
      dataset: dataset.name,
      stepCount: 8,
      batch: { sequenceLength: 64, sequenceCount: 1 },
    });
    const messages = new Map<string, string>();
    for await (const event of client.watch(job.name))
      if (event.kind === 'warning') messages.set(event.warning.reason, event.warning.message);
    expect(messages.get('SEQUENCES_IDLE')).toMatch(/\d+(\.\d+)? %/);
  });

  it('a tokenizer whose ids others would change is refused', async () => {
    const { client } = await realServer();
    const tokenizerJson = readFileSync(file('added-token-gap/tokenizer.json'), 'utf8');
    const tokenizer = { huggingFace: { tokenizerJson } };
    const uploading = client.uploadDataset({ files: [{ content: tinyText() }], spec: { tokenizer } });
    expect(await refusal(uploading)).toContain('expected 600, as Hugging Face numbers "<|im_end|>", got 650');
  });

  it('a tokenizer given as text ends texts with the token that is named', async () => {
    const { client } = await realServer();
    const tokenizerJson = readFileSync(file('eos-in-vocabulary/tokenizer.json'), 'utf8');
    const uploading = async (endToken: string) =>
      await client.uploadDataset({
        files: [{ content: tinyText() }],
        spec: { tokenizer: { huggingFace: { tokenizerJson, endToken } } },
      });
    const dataset = await uploading('</s>');
    expect(dataset.tokenizer?.endOfTextId).toBe(1);
    expect(dataset.spec?.tokenizer?.huggingFace).toMatchObject({ tokenizerJson: '', endToken: '</s>' });
    expect(await refusal(uploading('<end>'))).toContain('end_token: expected a token of tokenizer.json');
  });

  it('a model is the one that its files say, and its exports too', { timeout: 600_000 }, async () => {
    const { client } = await realServer();
    const exported = async (name: string) => {
      const weights = await client.uploadWeights({ from: file(name), weightsId: name });
      const { name: dataset } = await client.uploadDataset({
        datasetId: `${name}-text`,
        files: [{ content: tinyText() }],
        spec: { tokenizer: { huggingFace: { weights: weights.name } } },
      });
      const spec: Parameters<typeof client.createJob>[0] = {
        kind: JobKind.FULL_RANK,
        model: { baseWeights: { weights: weights.name } },
        dataset,
        stepCount: 2,
        batch: { sequenceLength: 32, sequenceCount: 2 },
        export: { formats: [ExportFormat.HUGGING_FACE] },
      };
      const { warnings } = await client.validateJob(spec);
      const job = await client.createJob(spec);
      await client.waitForJob(job.name);
      const to = join(mkdtempSync(join(made, 'export-')), name);
      await client.downloadArtifact(job.name, to);
      const json = (fileName: string) =>
        JSON.parse(readFileSync(join(to, fileName), 'utf8')) as Record<string, unknown>;
      return { weights, warnings, to, json };
    };

    const tied = await exported('tied-head');
    expect(tied.weights.warnings).toMatchObject([{ reason: 'HEAD_NOT_TIED' }]);
    expect(tied.warnings.map(({ reason }) => reason)).toContain('HEAD_NOT_TIED');
    expect(tied.json('config.json').tie_word_embeddings).toBe(false);

    const vocabulary = await exported('eos-in-vocabulary');
    expect(vocabulary.json('config.json').eos_token_id).toBe(1);
    expect(vocabulary.json('tokenizer_config.json').eos_token).toBe('</s>');

    const chat = await exported('chat-folder');
    expect(chat.json('config.json').eos_token_id).toEqual([5, 0]);
    expect(chat.json('generation_config.json')).toMatchObject({ eos_token_id: [5, 0], temperature: 0.6 });
    expect(chat.json('tokenizer_config.json').padding_side).toBe('left');
    const template = 'chat_template.jinja';
    expect(readFileSync(join(chat.to, template))).toEqual(readFileSync(file(`chat-folder/${template}`)));
  });
});

/** Weights of a small Llama with a head of its own, as safetensors. */
function smallLlama(
  vocabulary: number,
  hidden: number,
  intermediate: number,
  layers: number,
  keys: number,
): Buffer {
  const shapes: [name: string, shape: number[]][] = [
    ['lm_head.weight', [vocabulary, hidden]],
    ['model.embed_tokens.weight', [vocabulary, hidden]],
    ['model.norm.weight', [hidden]],
  ];
  for (let layer = 0; layer < layers; layer++) {
    const of: Record<string, number[]> = {
      input_layernorm: [hidden],
      post_attention_layernorm: [hidden],
      'mlp.down_proj': [hidden, intermediate],
      'mlp.gate_proj': [intermediate, hidden],
      'mlp.up_proj': [intermediate, hidden],
      'self_attn.k_proj': [keys, hidden],
      'self_attn.o_proj': [hidden, hidden],
      'self_attn.q_proj': [hidden, hidden],
      'self_attn.v_proj': [keys, hidden],
    };
    for (const [name, shape] of Object.entries(of))
      shapes.push([`model.layers.${layer}.${name}.weight`, shape]);
  }
  const header: Record<string, object> = {};
  const values: number[] = [];
  for (const [name, shape] of shapes) {
    const count = shape.reduce((product, size) => product * size);
    const begin = 4 * values.length;
    for (let index = 0; index < count; index++)
      values.push(shape.length === 1 ? 1 : 0.05 * Math.sin(values.length * 12.9898));
    header[name] = { dtype: 'F32', shape, data_offsets: [begin, begin + 4 * count] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.from(Float32Array.from(values).buffer)]);
}
