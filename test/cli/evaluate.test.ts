import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

test('relora evaluate scores a job and its artifact on data sets and questions, as the run itself did', async () => {
  const { address, client } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(200)));
  const lines = Array.from({ length: 8 }, (_, index) => ({
    question: `Line ${index}: the quick brown `,
    choices: ['fox jumps', 'zqx vvkkw'],
    answer: 'fox jumps',
  }));
  writeFileSync(join(folder, 'questions.jsonl'), lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
  writeFileSync(join(folder, 'wrong.jsonl'), '{"question": "q", "choices": ["a", "b"], "answer": 5}\n');
  for (const [id, tokenizer] of [
    ['tiny-text', []],
    ['other-tokens', ['--vocabulary', '300']],
  ] as const)
    expect((await relora(['upload', 'tiny.txt', '--held-out', '0.1', '--id', id, ...tokenizer])).code).toBe(
      0,
    );
  expect(await relora(['run', '--spec', 'spec.json', '--id', 'one-run'])).toMatchObject({ code: 0 });

  const last = [];
  for await (const event of client.watch('jobs/one-run'))
    if (event.kind === 'evaluation') last.push(event.evaluation);
  const { tokenCount, loss } = last.at(-1)!;
  const options = { datasets: ['datasets/tiny-text'], tokenCount, questions: '' };
  const found = await client.evaluate('jobs/one-run', options);
  expect(found).toMatchObject({ step: 210, datasets: [{ dataset: 'datasets/tiny-text', tokenCount }] });
  // The run may have rounded its products to bfloat16.
  expect(found.datasets[0]!.loss).toBeCloseTo(loss, 1);
  expect(found.choices).toBeUndefined();
  const artifact = await client.evaluate('jobs/one-run/artifacts/merged-model-1', options);
  expect(artifact).toEqual(found);

  const asked = ['evaluate', 'one-run', '--dataset', 'tiny-text', '--questions', 'questions.jsonl'];
  const shown = await relora(asked);
  expect(shown).toMatchObject({ code: 0, errors: '' });
  expect(shown.output).toMatch(
    /^Weights after 210 steps\.\nDATA SET +LOSS +PERPLEXITY +BITS\/BYTE +TOKENS\n/,
  );
  expect(shown.output).toMatch(/\n8 questions: 100\.0 % right, 100\.0 % by log-probability per byte; /);

  const wrong = await relora(['evaluate', 'one-run', '--questions', 'wrong.jsonl']);
  expect(wrong.code).toBe(3);
  expect(wrong.errors).toMatch(
    /questions +expected in line 1 an `answer` from 0 to 1, or one of the choices, got 5/,
  );
  expect((await relora(['evaluate', 'one-run'])).errors).toMatch(/datasets +expected a data set at least/);
  const other = await relora(['evaluate', 'one-run', '--dataset', 'other-tokens']);
  expect(other.errors).toContain(
    "datasets/other-tokens was prepared with a tokenizer that gives other tokens than the model's",
  );
  expect(await relora(['evaluate', 'one-run', '--dataset', 'nobody'])).toMatchObject({ code: 3, output: '' });
});
