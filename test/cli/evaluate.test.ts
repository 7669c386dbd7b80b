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
  // The run may have used bfloat16 products.
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

  // Results of calls are stored with the job, newest first, however the calls were made.
  const { evaluations } = await client.getJob('jobs/one-run');
  expect(evaluations.map(({ model, step }) => [model, step])).toEqual([
    ['jobs/one-run', 210],
    ['jobs/one-run/artifacts/merged-model-1', 210],
    ['jobs/one-run', 210],
  ]);
  expect(evaluations[1]).toMatchObject({ datasets: found.datasets, choices: undefined });
  expect(evaluations[0]!.choices).toMatchObject({ questionCount: 8, accuracy: 1 });
  const described = (await relora(['describe', 'one-run'])).output;
  expect(described).toMatch(
    /\nevaluated +8 questions: 100\.0 % right, .*\(jobs\/one-run after 210 steps, \d{4}-/,
  );
  expect(described).toMatch(
    /\nevaluated +datasets\/tiny-text: loss .*\(jobs\/one-run\/artifacts\/merged-model-1 /,
  );
});

test('a job is scored under the names that it gives, which events, description, comparison and metrics show', async () => {
  const { address, client, httpAddress } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(
    join(folder, 'other.txt'),
    'What nobody trains on, though its bytes are the same.\n'.repeat(50),
  );
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(20)));
  const question = { question: 'The quick brown ', choices: ['fox jumps', 'zqx vvkkw'], answer: 0 };
  writeFileSync(join(folder, 'questions.jsonl'), JSON.stringify(question));
  for (const name of ['tiny', 'other'])
    expect((await relora(['upload', `${name}.txt`, '--held-out', '0.1', '--id', `${name}-text`])).code).toBe(
      0,
    );

  const asked = ['--evaluation', 'other=datasets/other-text@5', '--evaluation', 'foxes=questions.jsonl@2h'];
  expect(await relora(['run', '--spec', 'spec.json', '--id', 'named-run', ...asked])).toMatchObject({
    code: 0,
  });
  expect(await relora(['run', '--spec', 'spec.json', '--id', 'plain-run'])).toMatchObject({ code: 0 });

  const seen: [string, number][] = [];
  const files = async (id: string) => (await client.listArtifacts(`jobs/${id}`))[0]!.files;
  for await (const event of client.watch('jobs/named-run'))
    if (event.kind === 'namedEvaluation') seen.push([event.namedEvaluation.name, event.namedEvaluation.step]);
  expect(seen.filter(([name]) => name === 'other').map(([, step]) => step)).toEqual([
    0, 5, 10, 15, 20, 25, 30,
  ]);
  // If only a time is given, the usual steps apply too.
  const foxes = seen.filter(([name]) => name === 'foxes').map(([, step]) => step);
  expect(foxes).toEqual([0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]);
  // The run itself does not depend on it.
  const weights = async (id: string) =>
    (await files(id)).find(({ fileName }) => fileName === 'model.safetensors');
  expect(await weights('named-run')).toEqual(await weights('plain-run'));

  const { progress } = await client.getJob('jobs/named-run');
  expect(progress!.evaluations.map(({ name, step }) => [name, step])).toEqual([
    ['other', 30],
    ['foxes', 30],
  ]);
  expect(progress!.evaluations[0]!.dataset).toMatchObject({ dataset: 'datasets/other-text' });
  const described = (await relora(['describe', 'named-run'])).output;
  expect(described).toMatch(/\nother +loss \d+\.\d{4}, perplexity .* bits\/byte, after 30 steps\n/);
  expect((await relora(['compare', 'named-run', 'plain-run'])).output).toMatch(
    /\nfoxes +(100\.0|0\.0) % +–\n/,
  );
  const metrics = await (await fetch(`http://${httpAddress}/metrics`)).text();
  expect(metrics).toMatch(/relora_job_named_evaluation_loss\{job_id="named-run",evaluation="other"\} \d/);
  expect(metrics).toMatch(
    /relora_job_named_evaluation_accuracy\{job_id="named-run",evaluation="foxes"\} [01]/,
  );
});
