import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { expect, onTestFinished, test } from 'vitest';
import { readConfig } from '../../server/dist/config.js';
import { preparerMemory, trainerMemory } from '../../server/dist/trainer/childMemory.js';
import { watchMemory } from '../../server/dist/trainer/memoryWatch.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { temporaryFolder } from './parts.js';

/** Each normalizer replaces one letter by ten: four of them make ten thousand. */
const multiplying = {
  version: '1.0',
  truncation: null,
  padding: null,
  added_tokens: [
    {
      id: 0,
      content: '</s>',
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    },
  ],
  normalizer: {
    type: 'Sequence',
    normalizers: Array.from({ length: 4 }, () => ({
      type: 'Replace',
      pattern: { String: 'a' },
      content: 'a'.repeat(10),
    })),
  },
  pre_tokenizer: { type: 'Whitespace' },
  post_processor: null,
  decoder: null,
  model: { type: 'WordLevel', vocab: { '</s>': 0, a: 1, b: 2 }, unk_token: 'b' },
};

test('a tokenizer that multiplies its text ends its own process at the limit, with the setting that says so', async () => {
  const dataFolder = temporaryFolder();
  const limitBytes = 400 * 2 ** 20;
  const config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_PREPARER_MEMORY_BYTES_MAX: String(limitBytes),
  });
  const path = join(dataFolder, 'a.txt');
  writeFileSync(path, 'a '.repeat(10_000));
  const tasks = new TaskRunner(config, pino({ level: 'silent' }));
  onTestFinished(async () => await tasks.stop());
  const prepared = tasks.run(
    {
      kind: 'prepareDataset',
      files: [{ path, beneath: null, fileName: 'a.txt', format: 'text', split: null }],
      spec: {
        tokenizer: { kind: 'huggingFace', tokenizerJson: JSON.stringify(multiplying) },
        heldOutShare: 0,
        textField: 'text',
        seed: 0,
      },
      baseFolder: null,
      outputFolder: join(dataFolder, 'prepared'),
      progressFolder: join(dataFolder, 'progress'),
      ...{ threads: 1, memoryBytesMax: 2 ** 32 },
      unpackedBytesMax: 2 ** 30,
      tokenizerCpuSeconds: config.tokenizerCpuSeconds,
    },
    { signal: new AbortController().signal, timeoutMs: null },
  );
  await expect(prepared).rejects.toMatchObject({
    reason: 'OUT_OF_MEMORY',
    message: expect.stringMatching(
      /^The process of the task was ended by SIGKILL because it took .* GiB of memory; 0\.39 GiB are allowed \(RELORA_PREPARER_MEMORY_BYTES_MAX\)$/,
    ) as string,
  });
});

test('the memory of one process is watched, and reported once', async () => {
  const grow = 'const kept = []; setInterval(() => kept.push(Buffer.alloc(20e6, 1)), 20)';
  const child = spawn(process.execPath, ['-e', grow], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  const seen: number[] = [];
  await new Promise<void>((resolve) => {
    watchMemory(child.pid!, 300e6, (bytes) => {
      seen.push(bytes);
      setTimeout(resolve, 300);
    });
  });
  expect(seen).toHaveLength(1);
  expect(seen[0]).toBeGreaterThan(300e6);
  child.kill('SIGKILL');
  await once(child, 'exit');
  // The watch ends with the process.
  watchMemory(child.pid!, 1, () => seen.push(0));
  await new Promise((resolve) => setTimeout(resolve, 250));
  expect(seen).toHaveLength(1);
});

test('a trainer may take what jobs are admitted up to, with some tolerance; other work what its setting says', () => {
  const config = readConfig({ RELORA_JOB_MEMORY_BYTES_MAX: '1000000000', RELORA_SLOTS: '2' });
  expect(trainerMemory(config)).toEqual({ bytesMax: 1.25e9, name: 'RELORA_JOB_MEMORY_BYTES_MAX' });
  expect(preparerMemory(config)).toEqual({ bytesMax: 2 ** 32, name: 'RELORA_PREPARER_MEMORY_BYTES_MAX' });
  expect(trainerMemory(readConfig({ RELORA_SLOTS: '2' })).bytesMax).toBeGreaterThan(2 ** 28);
});
