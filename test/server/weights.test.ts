import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { WeightsServiceDefinition } from '@relora/sdk/contract';
import { ReloraClient, type ReloraError } from '@relora/sdk';
import { createClient } from 'nice-grpc';
import { describe, expect, it, onTestFinished } from 'vitest';
import { runServer } from './runningServer.js';

const fixtures = join(import.meta.dirname, '../fixtures/transformers');
const qwen = join(fixtures, 'qwen2-bfloat16');

/** A copy of a model's files, to be made wrong. */
function copyOf(model: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'relora-weights-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  cpSync(model, folder, { recursive: true });
  return folder;
}

async function open(settings: Record<string, string> = {}, dataFolder?: string) {
  const running = await runServer(settings, dataFolder);
  const client = new ReloraClient({ address: running.server.grpcAddress, retries: { attemptsMax: 1 } });
  onTestFinished(() => client.close());
  return { ...running, client, weights: createClient(WeightsServiceDefinition, running.channel) };
}

async function refused(promise: Promise<unknown>): Promise<ReloraError> {
  return await promise.then(
    () => expect.fail('It was not refused'),
    (error: unknown) => error as ReloraError,
  );
}

/** Bytes below 32, which the small vocabularies of the fixtures have. */
const tokenizerJson = JSON.stringify({
  model: {
    type: 'BPE',
    vocab: Object.fromEntries([...'abcdefghijklmnop'].map((c, i) => [c, i])),
    merges: [],
  },
});

function changeConfig(folder: string, changes: Record<string, unknown>): void {
  const path = join(folder, 'config.json');
  writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, 'utf8')) as object), ...changes }));
}

describe('uploaded weights', () => {
  it('are checked, shown, listed and deleted', async () => {
    const { client, dataFolder } = await open();
    const uploaded = await client.uploadWeights({ from: qwen, weightsId: 'tiny-qwen', displayName: 'Tiny' });
    expect(uploaded).toMatchObject({
      name: 'weights/tiny-qwen',
      state: 'WEIGHTS_STATE_READY',
      config: { attentionBias: true, tieWordEmbeddings: true, numKeyValueHeads: 1, vocabSize: 32 },
      tokenizerVocabularySize: 0,
    });
    expect(uploaded.parameterCount).toBeGreaterThan(4000);
    expect(uploaded.files.map(({ fileName }) => fileName)).toEqual(['config.json', 'model.safetensors']);
    expect(await client.uploadWeights({ from: qwen, weightsId: 'tiny-qwen' })).toMatchObject({
      state: 'WEIGHTS_STATE_READY',
    });
    const other = await refused(
      client.uploadWeights({ from: join(fixtures, 'tied-float32'), weightsId: 'tiny-qwen' }),
    );
    expect(other.reason).toBe('WEIGHTS_EXISTS');
    const listed = [];
    for await (const { name } of client.listWeights()) listed.push(name);
    expect(listed).toEqual(['weights/tiny-qwen']);
    await client.deleteWeights('weights/tiny-qwen');
    expect(existsSync(join(dataFolder, 'weights', 'tiny-qwen'))).toBe(false);
    expect((await refused(client.getWeights('weights/tiny-qwen'))).reason).toBe('WEIGHTS_NOT_FOUND');
  });

  it('come in shards too', async () => {
    const { client } = await open();
    const uploaded = await client.uploadWeights({ from: join(fixtures, 'sharded-bfloat16') });
    expect(uploaded.files).toHaveLength(5);
    expect(uploaded.state).toBe('WEIGHTS_STATE_READY');
  });

  it('go on where a broken upload stopped, after a restart of the server too', async () => {
    const files = ['config.json', 'model.safetensors'].map((fileName) => {
      const content = readFileSync(join(qwen, fileName));
      const sha256 = createHash('sha256').update(content).digest('hex');
      return { fileName, sizeBytes: content.length, sha256, content };
    });
    const first = await open();
    const part = async function* () {
      yield { header: { weightsId: 'broken', files } };
      yield { chunk: { fileIndex: 0, offsetBytes: 0, data: files[0]!.content } };
      yield { chunk: { fileIndex: 1, offsetBytes: 0, data: files[1]!.content.subarray(0, 1000) } };
    };
    await expect(first.weights.uploadWeights(part())).rejects.toThrow(
      `The upload of weights/broken ended early: model.safetensors has 1000 of ${files[1]!.sizeBytes} bytes`,
    );
    await first.server.stop();
    const { client } = await open({}, first.dataFolder);
    expect(await client.getWeights('weights/broken')).toMatchObject({
      state: 'WEIGHTS_STATE_UPLOADING',
      files: [{ receivedBytes: files[0]!.sizeBytes }, { receivedBytes: 1000 }],
    });
    const uploaded = await client.uploadWeights({ from: qwen, weightsId: 'broken' });
    expect(uploaded.state).toBe('WEIGHTS_STATE_READY');
  });

  it('stop where the disk would be too full', async () => {
    const { client } = await open({ RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) });
    const error = await refused(client.uploadWeights({ from: qwen }));
    expect(error.reason).toBe('DISK_FULL');
  });

  it('are refused by name, number and size before any byte', async () => {
    const { client } = await open({ RELORA_WEIGHTS_FILES_MAX: '2', RELORA_WEIGHTS_BYTES_MAX: '1000' });
    const script = join(copyOf(qwen), 'modeling.py');
    writeFileSync(script, 'print()');
    const error = await refused(
      client.uploadWeights({ from: [script, join(qwen, 'config.json'), join(qwen, 'model.safetensors')] }),
    );
    expect(error.fields.map(({ field }) => field).sort()).toEqual([
      'header.files',
      'header.files',
      'header.files[0].file_name',
    ]);
  });

  const faults: [name: string, spoil: (folder: string) => void, message: string][] = [
    [
      'a tensor is missing',
      (folder) => changeConfig(folder, { num_hidden_layers: 3 }),
      'expected at most 2, as there are',
    ],
    [
      'a tensor has another shape',
      (folder) => changeConfig(folder, { intermediate_size: 25 }),
      'model.layers.0.mlp.gate_proj.weight: expected a tensor 25 x 16, found 24 x 16',
    ],
    [
      'a tensor is left over',
      (folder) => changeConfig(folder, { num_hidden_layers: 1, layer_types: null }),
      'expected only tensors of a Llama model of this config.json, found one more',
    ],
    [
      'a value is not finite',
      (folder) => {
        const path = join(folder, 'model.safetensors');
        const bytes = readFileSync(path);
        bytes.writeUInt16LE(0x7fc0, bytes.length - 2);
        writeFileSync(path, bytes);
      },
      'expected finite values, found NaN at position 15',
    ],
    [
      'the architecture is another',
      (folder) => changeConfig(folder, { architectures: ['MambaForCausalLM'], model_type: 'mamba' }),
      'config.json architectures: expected one of LlamaForCausalLM, Qwen2ForCausalLM, MistralForCausalLM',
    ],
    [
      'the header is longer than the file',
      (folder) => {
        const path = join(folder, 'model.safetensors');
        const bytes = readFileSync(path);
        bytes.writeBigUInt64LE(2n ** 40n);
        writeFileSync(path, bytes);
      },
      'claims a header of 1099511627776 bytes',
    ],
    [
      'the tokenizer has more tokens',
      (folder) =>
        writeFileSync(
          join(folder, 'tokenizer.json'),
          tokenizerJson.replace(
            '"a":0',
            [...'qrstuvwxyzABCDEFGHIJ'].map((c, i) => `"${c}":${i + 16}`).join() + ',"a":0',
          ),
        ),
      'tokenizer.json',
    ],
  ];
  for (const [name, spoil, message] of faults) {
    it(`are refused and dropped where ${name}, and refused at a path when a job is created`, async () => {
      const folder = copyOf(qwen);
      spoil(folder);
      const { client, dataFolder } = await open();
      const error = await refused(client.uploadWeights({ from: folder, weightsId: 'spoiled' }));
      expect(error.reason).toBe('WEIGHTS_INVALID');
      expect(error.message).toContain(message);
      expect(existsSync(join(dataFolder, 'weights', 'spoiled'))).toBe(false);
      expect(readdirSync(join(dataFolder, 'weights'))).toEqual([]);
    });
  }
});
