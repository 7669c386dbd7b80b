import { beginRun, disposeRun, openDevice, type BeginRunOptions, type RunSpec } from '@relora/engine';
import { Dataset } from '@relora/engine/data';
import { expect, it } from 'vitest';
import { dataFolder } from './dataFixtures.js';
import { interrupted, ofKind, runLoop, temporaryFolders, tinySpec, weightsOf } from './tinyRun.js';

const newFolder = temporaryFolders();
const { source, prepare } = dataFolder();
const template =
  "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}";

/** Short chats, one of which contains `words`. */
async function chats(words: string): Promise<Dataset> {
  const answers = Array.from({ length: 160 }, (_, i) => (i === 40 ? words : `so ${i % 7}`));
  const rows = answers.map((content, i) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: `${i} and?` },
        { role: 'assistant', content },
      ],
    }),
  );
  const path = await prepare([source(`${words.length}.jsonl`, rows.join('\n'), 'jsonl')], {
    chat: { field: 'messages', template, tokens: {} },
  });
  return await Dataset.open(path, { verify: true });
}

it('chats train with masked documents and without one of them, whose words then decide nothing', async () => {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const [one, other] = [await chats('never to be learned'), await chats('nobody says it, no!')];
  const begin =
    (dataset: Dataset) =>
    async (spec: RunSpec, options: Partial<BeginRunOptions> = {}) =>
      await beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1, ...options });
  const trained = async (dataset: Dataset, spec: RunSpec) => {
    const run = await begin(dataset)(spec);
    const losses = ofKind(await runLoop(run), 'step').map(({ loss }) => loss);
    const weights = await weightsOf(run);
    disposeRun(run);
    return { losses, weights };
  };
  const bytes = Buffer.from(one.train.read(0, one.train.tokenCount));
  const firstToken = bytes.lastIndexOf('user: 40', bytes.indexOf('never to be learned'));
  const tokenCount = bytes.indexOf('learned\n') + 'learned\n'.length + 1 - firstToken;
  const batch = { maskDocuments: true };
  const omittedDocuments = [{ dataset: 'datasets/license', firstToken, tokenCount }];
  const [all, without] = [tinySpec({ batch }), tinySpec({ batch, omittedDocuments })];

  const first = await trained(one, without);
  expect(await trained(other, without)).toEqual(first);
  // The omitted words were the difference: without the omission, or with other masks, losses differ.
  expect((await trained(other, all)).losses).not.toEqual((await trained(one, all)).losses);
  expect((await trained(one, tinySpec({ omittedDocuments }))).losses).not.toEqual(first.losses);
  const { run } = await interrupted(begin(one), without, 9);
  expect(await weightsOf(run)).toEqual(first.weights);
  disposeRun(run);
  await one.close();
  await other.close();
});

it.each([
  ['its first tokens', 512],
  ['its first sequence', 24],
] as const)('a restart measures its loss where %s are all of prompts', async (_, sequenceLength) => {
  const rows = Array.from({ length: 40 }, (_, i) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: `${i} ${'and so on, '.repeat(60)}` },
        { role: 'assistant', content: `so ${i % 7}` },
      ],
    }),
  );
  const path = await prepare([source(`long-${sequenceLength}.jsonl`, rows.join('\n'), 'jsonl')], {
    chat: { field: 'messages', template, tokens: {} },
  });
  const dataset = await Dataset.open(path, { verify: true });
  const spec = tinySpec({
    model: { maxPositionEmbeddings: 512 },
    batch: { sequenceLength, sequenceCount: 2, microBatchSequenceCount: 2 },
    warmStart: { stepCount: 0 },
    stepCount: 4,
    adapter: { cycleStepCount: 2, restartWarmupStepCount: 1 },
    learningRate: { peak: 6e-3, schedule: 'constant', warmupStepCount: 0 },
  });
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const run = await beginRun({ spec, device, dataset, runFolder: newFolder(), attempt: 1 });
  const { targets } = await run.batches.read(0, 1);
  expect(targets.slice(0, 256).every((target) => target === -1)).toBe(true);
  const [restart] = ofKind(await runLoop(run), 'restart');
  expect(restart!.lossBefore).toBeGreaterThan(1);
  expect(Math.abs(restart!.lossAfter - restart!.lossBefore)).toBeLessThan(1e-3);
  disposeRun(run);
  await dataset.close();
});
