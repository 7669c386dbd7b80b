import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ExportedWeights, JobState, StopReason } from '@relora/sdk';
import { expect, test } from 'vitest';
import { folders } from '../../server/dist/store/folders.js';
import { JobLog } from '../../server/dist/trainer/jobLog.js';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

/** A server with a data set and a waiting job: another job takes the only slot. */
async function waitingJob() {
  const dataFolder = temporaryFolder();
  const { address, client } = await realServer({ RELORA_DATA_FOLDER: dataFolder, RELORA_SLOTS: '1' });
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(1_000_000)));
  expect((await relora(['upload', 'tiny.txt', '--held-out', '0.1', '--id', 'tiny-text'])).code).toBe(0);
  for (const id of ['long-one', 'next-one'])
    expect(await relora(['create', '--spec', 'spec.json', '--id', id])).toMatchObject({ code: 0 });
  return { relora, client, dataFolder };
}

test('relora set changes a job that has not ended, says how the rate jumps, and refuses what it cannot read', async () => {
  const { relora, client } = await waitingJob();
  const changed = await relora([
    'set',
    'next-one',
    'rate=0.5x',
    'steps=200',
    'priority=7',
    'evaluate-every=15min',
    'checkpoint-every=40',
    'keep=5',
    'sample-every=2h',
    'label.team=vision',
    'label.note=a=b',
  ]);
  expect(changed).toMatchObject({ code: 0, errors: '' });
  expect(changed.output).toMatch(
    /^jobs\/next-one is changed; it is queued.*\.\nLearning rate of the next step: \d\.\d{3}e-\d+ -> \d\.\d{3}e-\d+\.\n$/,
  );
  const job = await client.getJob('jobs/next-one');
  expect(job).toMatchObject({ spec: { priority: 7 }, labels: { team: 'vision', note: 'a=b' } });
  expect(job.updates).toMatchObject([
    {
      number: 1,
      learningRateFactor: 0.5,
      stepCount: 200,
      evaluation: { everySeconds: 900 },
      checkpoint: { everyStepCount: 40, keepCount: 5 },
      sample: { everySeconds: 7200 },
    },
  ]);
  expect(await relora(['set', 'next-one', 'label.team='])).toMatchObject({ code: 0 });
  expect((await client.getJob('jobs/next-one')).labels).toEqual({ note: 'a=b' });

  // A repeated command takes effect once.
  const once = ['set', 'next-one', 'rate=2x', '--request-id', '7d3e0a6c-0b43-4f2b-9d51-2d2f3e3f8a10'];
  for (const _ of [1, 2]) expect(await relora(once)).toMatchObject({ code: 0 });
  expect((await client.getJob('jobs/next-one')).updates).toHaveLength(2);

  for (const [change, message] of [
    ['rate=0.5', 'rate: Expected a factor, for example rate=0.5x, got "0.5"'],
    ['seed=3', 'Expected one of rate, steps,'],
    ['steps', 'Expected NAME=VALUE, got "steps"'],
    ['checkpoint-every=0min', '2h, 1d), got "0min"'],
    ['stop=soon', 'Expected stop=now, got "stop=soon"'],
  ] as const) {
    const refused = await relora(['set', 'next-one', change]);
    expect(refused).toMatchObject({ code: 2, output: '' });
    expect(refused.errors).toContain(message);
  }
  const few = await relora(['set', 'next-one', 'keep=1']);
  expect(few.code).toBe(3);
  expect(few.errors).toMatch(/spec\.checkpoint\.keep_count +expected a whole number from 2 to 1000, got 1/);
  expect(await relora(['set', 'nobody', 'rate=2x'])).toMatchObject({ code: 3 });

  // The running job ends before its next step, with weights.
  expect(await relora(['set', 'long-one', 'stop=now'])).toMatchObject({ code: 0 });
  expect(await client.waitForJob('jobs/long-one')).toMatchObject({
    state: JobState.SUCCEEDED,
    progress: { stopReason: StopReason.REQUESTED },
  });
  expect((await relora(['explain', 'long-one'])).output).toMatch(
    /Ended early after step \d+: somebody asked/,
  );
});

test('relora create says by its flags what ends a job early and which weights are kept', async () => {
  const { relora, client } = await waitingJob();
  const flags = [
    ...['--stop-patience', '5', '--stop-improvement', '0.01', '--stop-loss', '2.5', '--stop-tokens', '1000'],
    ...['--stop-after', '8h', '--stop-device-hours', '1.5', '--export-best'],
  ];
  const asked = ['create', '--spec', 'spec.json', '--id', 'early-one', ...flags];
  expect(await relora(asked)).toMatchObject({ code: 0 });
  const { spec } = await client.getJob('jobs/early-one');
  expect(spec).toMatchObject({
    stop: {
      patienceEvaluationCount: 5,
      minImprovement: 0.01,
      evaluationLoss: 2.5,
      tokenCount: 1000,
      seconds: 28_800,
      deviceHours: 1.5,
    },
    checkpoint: { keepBest: true },
    export: { weights: ExportedWeights.BEST },
  });
  expect((await relora(['describe', 'early-one'])).output).toMatch(
    /ends early +after 5 evaluations without a lower held-out loss, or at a held-out loss of 2\.5/,
  );
  expect((await relora(['explain', 'early-one'])).output).toMatch(/Place 2 in the queue/);
  const wrong = await relora([...asked.slice(0, -1), '--stop-after', '8']);
  expect(wrong.errors).toContain('Expected a time above zero (90s, 15min, 2h, 1d), got "8"');
});

test('relora logs shows what trainers printed, by attempt, and follows until the job has ended', async () => {
  const { relora, client, dataFolder } = await waitingJob();
  for (const [attempt, lines] of [
    [1, ['loading', 'out of heap']],
    [2, ['loading again']],
  ] as const) {
    const log = new JobLog(folders.log(dataFolder, 'next-one'), attempt, 1 << 20);
    for (const line of lines) log.write(line.startsWith('out'), line);
    await log.flush();
  }
  const shown = await relora(['logs', 'next-one']);
  expect(shown.code).toBe(0);
  const time = String.raw`\d{4}-\d\d-\d\dT[\d:.]+Z`;
  expect(shown.output).toMatch(
    new RegExp(`^Attempt 1:\n${time}  loading\n${time}  out of heap\nAttempt 2:\n${time}  loading again\n$`),
  );
  expect((await relora(['logs', 'next-one', '--attempt', '2'])).output).not.toContain('out of heap');
  expect((await relora(['logs', 'next-one', '--json'])).json()).toMatchObject([
    { attempt: 1, isError: false, text: 'loading' },
    { attempt: 1, isError: true, text: 'out of heap' },
    { attempt: 2, isError: false, text: 'loading again' },
  ]);
  const followed = relora(['logs', 'next-one', '-f']);
  await client.cancelJob('jobs/next-one');
  expect((await followed).output).toBe(shown.output);
  expect(await relora(['logs', 'next-one', '--attempt', '9'])).toMatchObject({ output: '' });
  expect(await relora(['logs', 'nobody'])).toMatchObject({ code: 3, output: '' });
});
