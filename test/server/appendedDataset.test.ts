import { ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { readConfig } from '../../server/dist/config.js';
import { Confinement } from '../../server/dist/trainer/confinement.js';
import { runServer } from './runningServer.js';

test('files are appended to a data set as a new version, which outlives it', async () => {
  // Its child reads the base, which is in another folder than its output; it is sandboxed if the kernel supports that.
  const isConfined = new Confinement(readConfig({})).means !== null;
  const { server } = await runServer({ RELORA_SANDBOX: isConfined ? 'required' : 'off' });
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  const text = (word: string) =>
    Array.from({ length: 200 }, (_, index) => `${word} ${index * 7919}.\n`).join('');
  const base = await client.uploadDataset({
    datasetId: 'tales',
    files: [{ content: text('alpha') }],
    spec: { tokenizer: { trainedBpe: { vocabularySize: 300 } }, heldOutShare: 0.1 },
  });
  const more = { files: [{ content: text('beta') }], base: base.name };
  const next = await client.uploadDataset({ ...more, datasetId: 'tales-2', spec: { heldOutShare: 0.2 } });
  expect(next).toMatchObject({ base: base.name, tokenizer: base.tokenizer });
  expect(next.train!.tokenCount).toBeGreaterThan(1.5 * base.train!.tokenCount);
  expect(next.heldOut!.tokenCount).toBeGreaterThan(base.heldOut!.tokenCount);
  expect(next.manifestSha256).not.toBe(base.manifestSha256);
  expect((await client.getDataset(base.name)).manifestSha256).toBe(base.manifestSha256);
  const firstTokens = async (name: string) => await client.previewDataset(name, { tokenCount: 50 });
  expect(await firstTokens(next.name)).toEqual(await firstTokens(base.name));
  await client.deleteDataset(base.name);
  expect(await firstTokens(next.name)).toHaveLength(50);

  const refusals: [Partial<Parameters<typeof client.uploadDataset>[0]>, string][] = [
    [{ base: 'datasets/lost' }, 'header.base'],
    [{ base: base.name }, 'header.base'], // deleted
    [{ base: next.name, spec: { tokenizer: { bytes: {} } } }, 'header.spec.tokenizer'],
  ];
  for (const [changes, field] of refusals) {
    const refused = client.uploadDataset({ ...more, datasetId: 'tales-3', ...changes });
    await expect(refused).rejects.toMatchObject({ fields: [{ field }] });
  }
});
