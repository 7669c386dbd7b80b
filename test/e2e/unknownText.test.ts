import { DatasetFailedError, JobKind } from '@relora/sdk';
import { expect, test } from 'vitest';
import { realServer } from '../sdk/realServer.js';
import { tinyText } from './tinyJob.js';

/** Knows small English letters and digits; any other word is a single token. */
const tokenizerJson = JSON.stringify({
  ...{ version: '1.0', truncation: null, padding: null, normalizer: { type: 'Lowercase' } },
  ...{ pre_tokenizer: { type: 'Whitespace' }, post_processor: null, decoder: null, added_tokens: [] },
  model: {
    ...{
      type: 'WordPiece',
      unk_token: '[UNK]',
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
    },
    vocab: Object.fromEntries(
      [
        '[SEP]',
        '[UNK]',
        ...[...'abcdefghijklmnopqrstuvwxyz0123456789:,.'].flatMap((one) => [one, `##${one}`]),
      ].map((token, id) => [token, id]),
    ),
  },
});

test('text that the tokenizer does not know is warned of, by data set and job, and refused where it is most', async () => {
  const { client } = await realServer();
  const upload = async (content: string) =>
    await client.uploadDataset({
      files: [{ fileName: 'tales.txt', content }],
      spec: { tokenizer: { huggingFace: { tokenizerJson } } },
    });
  expect((await upload(tinyText())).warnings).toEqual([]);

  const dataset = await upload(`${tinyText()}${'川 の 流れ は '.repeat(500)}`);
  const message = expect.stringMatching(
    /^The tokenizer does not know \d+ % of the text, of which nothing is learned: the first is in tales\.txt, document 1$/,
  ) as string;
  expect(dataset.warnings).toEqual([{ reason: 'TEXT_UNKNOWN', message }]);
  const job = await client.createJob({
    kind: JobKind.FULL_RANK,
    model: { config: { hiddenSize: 32, intermediateSize: 64, numHiddenLayers: 1, numAttentionHeads: 2 } },
    dataset: dataset.name,
    stepCount: 1,
    batch: { sequenceLength: 64, sequenceCount: 1 },
  });
  const warnings = [];
  for await (const event of client.watch(job.name))
    if (event.kind === 'warning') warnings.push(event.warning);
  expect(warnings).toContainEqual({ reason: 'TEXT_UNKNOWN', message });

  const refused = upload('川 の 流れ は '.repeat(500));
  await expect(refused).rejects.toThrow(DatasetFailedError);
  await expect(refused).rejects.toThrow(
    /tales\.txt, document 1: the tokenizer knows 0 of its \d+ characters/,
  );
});
