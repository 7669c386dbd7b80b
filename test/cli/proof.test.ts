import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

interface WrittenBundle {
  spec: { learningRate: { peak: number } };
  execution: { instructionSet: string };
  dataset: { manifestSha256: string };
  files: { sha256: string }[];
}

test('a job shows its restarts, and runs again to the same bytes, here and on another server', async () => {
  const { address } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(30)));
  const upload = ['upload', 'tiny.txt', '--held-out', '0.1'];
  await relora([...upload, '--id', 'tiny-text']);
  const create = ['create', '--spec', 'spec.json', '--id'];
  await relora([...create, 'job-long', '--steps', '100000']);
  expect(await relora(['bundle', 'job-long', '-o', 'long.json'])).toMatchObject({
    code: 3,
    errors: expect.stringContaining('only a job that succeeded has a result to compare with') as string,
  });
  await relora(['cancel', 'job-long']);
  expect((await relora([...create, 'job-one'])).code).toBe(0);
  expect((await relora(['watch', 'job-one'])).code).toBe(0);

  const shown = (await relora(['restarts', 'job-one'])).output;
  expect(shown).toMatch(/^RESTART +STEP +RATE +PROBE LOSS +NORM +LOGIT DRIFT +ZEROED +RANK +TIME$/m);
  expect(shown).toMatch(/^1 +20 +\S+ → 0 +[\d.]+ → [\d.]+ +[\d.]+ +\S+ of \S+ +100\.0 % +[\d.]+ +[\d.]+ s$/m);
  expect(shown).toMatch(/^RESTART +q_proj +k_proj +v_proj +o_proj +gate_proj +up_proj +down_proj$/m);
  const [listed] = (await relora(['restarts', 'job-one', '--json'])).json();
  expect(listed!.restarts).toHaveLength(2);

  // Further exports are not results of the training.
  expect((await relora(['export', 'job-one', '--format', 'gguf', '--out', 'gguf'])).code).toBe(0);
  const replayed = await relora(['replay', 'job-one']);
  expect(replayed).toMatchObject({ code: 0 });
  expect(replayed.output).toMatch(
    /^identical: all 5 files of jobs\/\S+ have the same SHA-256 as in the first run\.$/m,
  );
  expect(replayed.output).toMatch(/^ {2}[0-9a-f]{64} {2}model\.safetensors$/m);

  expect((await relora(['bundle', 'job-one', '-o', 'one.json'])).output).toBe(
    'one.json: 40 steps, 5 files by SHA-256.\n',
  );
  const bundle = JSON.parse(readFileSync(join(folder, 'one.json'), 'utf8')) as WrittenBundle;
  const write = (changes: Partial<WrittenBundle>) =>
    writeFileSync(join(folder, 'changed.json'), JSON.stringify({ ...bundle, ...changes }));

  // As small a change as float32 can represent, visible from the first step after an update.
  const peak = bundle.spec.learningRate.peak * (1 + 2 ** -22);
  write({ spec: { ...bundle.spec, learningRate: { ...bundle.spec.learningRate, peak } } });
  const differs = await relora(['replay', '--bundle', 'changed.json']);
  expect(differs.code).toBe(6);
  expect(differs.output).toMatch(
    /^not identical: 1 of 5 files of jobs\/\S+ differ\.\n {2}model\.safetensors\n/,
  );
  const step = Number(/^First differing step: (\d+), loss \S+ instead of \S+\.$/m.exec(differs.output)?.[1]);
  expect(step).toBeGreaterThan(10);
  expect(differs.output).toContain('The records of the two executions are equal, so the settings differ.');

  write({ execution: { ...bundle.execution, instructionSet: 'abacus' } });
  const elsewhere = await relora(['replay', '--bundle', 'changed.json']);
  expect(elsewhere.code).toBe(0);
  expect(elsewhere.errors).toMatch(
    /^This server differs from the one that ran the job, .*\n {2}instructionSet +\S+ instead of abacus\n/,
  );

  const other = cli(folder, (await realServer()).address);
  expect(await other(['replay', '--bundle', 'one.json'])).toMatchObject({
    code: 3,
    errors: expect.stringContaining('upload the same files with the same preparation') as string,
  });
  await other([...upload, '--id', 'same-text']);
  expect(await other(['replay', '--bundle', 'one.json'])).toMatchObject({ code: 0 });
});

test('everything that a job exports at its end is compared', async () => {
  const { address } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  const formats = ['EXPORT_FORMAT_HUGGING_FACE', 'EXPORT_FORMAT_PEFT', 'EXPORT_FORMAT_GGUF'];
  writeFileSync(join(folder, 'spec.json'), JSON.stringify({ ...tinySpec(30), export: { formats } }));
  await relora(['upload', 'tiny.txt', '--held-out', '0.1', '--id', 'tiny-text']);
  await relora(['create', '--spec', 'spec.json', '--id', 'job-three']);
  expect((await relora(['watch', 'job-three'])).code).toBe(0);
  const replayed = await relora(['replay', 'job-three']);
  expect(replayed).toMatchObject({ code: 0 });
  for (const file of ['hugging_face/model.safetensors', 'peft/base/model.safetensors', 'gguf/model.gguf'])
    expect(replayed.output).toMatch(new RegExp(`^ {2}[0-9a-f]{64} {2}${file}$`, 'm'));
});

test('a bundle that is none is refused with the field', async () => {
  const { address } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  const refused = async (content: string) => {
    writeFileSync(join(folder, 'bad.json'), content);
    return await relora(['replay', '--bundle', 'bad.json']);
  };
  expect(await refused('{')).toMatchObject({ code: 2 });
  const head = { format: 'relora-bundle', formatVersion: 1, job: 'jobs/one' };
  const dataset = { name: 'datasets/a', manifestSha256: '0'.repeat(64) };
  const whole = { ...head, dataset, spec: {}, execution: {}, files: [], losses: [] };
  for (const [changes, message] of [
    [{ formatVersion: 2 }, 'format  expected relora-bundle of version 1, got "relora-bundle" 2'],
    [
      { dataset: { name: 'datasets/a' } },
      'dataset.manifestSha256  expected a SHA-256 in hexadecimal, got nothing',
    ],
    [{ spec: { steps: 1 } }, 'spec.steps  there is no such field'],
    [{ losses: ['1'] }, 'losses[0]  expected a number, got "1"'],
  ] as const)
    expect((await refused(JSON.stringify({ ...whole, ...changes }))).errors).toContain(message);
  expect(await relora(['replay'])).toMatchObject({ code: 2 });
  expect((await relora(['bundle', 'job-none', '-o', 'x.json'])).code).toBe(3);
});
