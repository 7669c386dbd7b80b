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
