import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

test('relora explain --step names the documents that made the loss of a step, and a fork does without it', async () => {
  const { address, client } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  const odd = 'Zq#7~x!Kw%2^vJ&9*pG(4)mB_8+hD{6}';
  const lines = Array.from({ length: 300 }, (_, index) => `the cat ${index % 7} sat on the mat ${index % 5}`);
  lines[123] = odd;
  writeFileSync(join(folder, 'lines.jsonl'), lines.map((text) => `${JSON.stringify({ text })}\n`).join(''));
  const spec = { ...tinySpec(200), document_window_step_count: 20 };
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(spec));
  const upload = ['upload', 'lines.jsonl', '--held-out', '0', '--id', 'tiny-text'];
  expect(await relora(upload)).toMatchObject({ code: 0 });
  expect(await relora(['run', '--spec', 'spec.json', '--id', 'one-run'])).toMatchObject({ code: 0 });

  // The document was read once per pass: use the step with its highest loss.
  const seen = [];
  for await (const event of client.watch('jobs/one-run'))
    if (event.kind === 'documents') seen.push(...event.documents.worst);
  const worst = seen.filter(({ tokenCount, step }) => tokenCount > 8 && step > 50);
  const { step } = worst.reduce((one, other) => (other.excess > one.excess ? other : one));
  const found = await client.explainJob('jobs/one-run', { step });
  const index = found.places.findIndex(({ documentIndex }) => documentIndex === 123);
  expect(index).toBeGreaterThanOrEqual(0);
  expect(found.places[index]).toMatchObject({ dataset: 'datasets/tiny-text', file: 'train-00000.bin' });
  expect(odd).toContain(found.places[index]!.text);
  // There is only one file, used completely for training: the number in the file equals that in the training part.
  expect(found.places[index]).toMatchObject({ sourceFile: 'lines.jsonl', sourceDocument: 123 });
  const before = lines.slice(0, 123).reduce((sum, line) => sum + Buffer.byteLength(line) + 1, 0);
  expect(found.places[index]).toMatchObject({
    documentFirstToken: before,
    documentTokenCount: Buffer.byteLength(odd) + 1,
  });
  expect(found.documents!.worst[index]!.loss).toBeGreaterThan(1);

  const shown = await relora(['explain', 'one-run', '--step', String(step)]);
  expect(shown.code).toBe(0);
  expect(shown.output).toMatch(/datasets\/tiny-text train-00000\.bin:\d+ +123\+\d+ /);
  expect(shown.output).toMatch(/^ +\d\.\d\d {2}#+ +\d+$/m);
  const [, omitted] = /relora fork one-run --omit-steps (\d+)$/m.exec(shown.output) ?? [];
  expect(Number(omitted)).toBeGreaterThan(0);
  const fork = ['fork', 'one-run', '--omit-steps', '205', '--steps', '210', '--id', 'without-it'];
  expect(await relora(fork)).toMatchObject({ code: 0 });

  // Without the documents that it names, with everything else unchanged.
  expect(shown.output).toMatch(new RegExp(`relora fork one-run --omit-documents-of-step ${step}$`, 'm'));
  const without = [
    'fork',
    'one-run',
    '--omit-documents-of-step',
    String(step),
    '--steps',
    '240',
    '--id',
    'no-odd',
  ];
  expect(await relora(without)).toMatchObject({ code: 0 });
  await client.waitForJob('jobs/no-odd');
  const { spec: forked } = await client.getJob('jobs/no-odd');
  expect(forked!.omittedDocuments).toContainEqual({
    dataset: 'datasets/tiny-text',
    firstToken: before,
    tokenCount: Buffer.byteLength(odd) + 1,
  });
  const wrong = { omittedDocuments: [{ dataset: 'datasets/other', firstToken: 0, tokenCount: 1e9 }] };
  await expect(client.forkJob('jobs/one-run', wrong)).rejects.toMatchObject({
    reason: 'JOB_SPEC_INVALID',
    message: expect.stringContaining('a data set that the job trains on'),
  });

  const beyond = await relora(['explain', 'one-run', '--step', '9999']);
  expect(beyond.code).toBe(3);
  expect(beyond.errors).toMatch(/step +expected a whole number from 0 to 209, got 9999/);
});
