import { ReloraClient } from '@relora/sdk';
import { describe, expect, it, onTestFinished } from 'vitest';
import { openParts } from './parts.js';
import { stores } from './postgres.js';
import { runServer } from './runningServer.js';

const file = { fileName: 'a.txt', serverPath: null, format: 'text', split: null, sizeBytes: 1 } as const;
const sha256 = 'a'.repeat(64);
const spec = { tokenizer: { kind: 'bytes' }, heldOutShare: 0, textField: 'text', seed: 0 } as const;

describe.each(stores)('on $name', ({ skip, url }) => {
  it.skipIf(skip)(
    'data sets and weights are found by all of some labels, and by who uploaded them',
    async () => {
      const { datasets, weights } = await openParts({}, undefined, undefined, await url());
      const each: [id: string, labels: Record<string, string>, owner: string][] = [
        ['first', { team: 'vision', stage: 'raw' }, 'ada'],
        ['second', { team: 'vision' }, 'bob'],
        ['third', {}, 'ada'],
      ];
      for (const [id, labels, owner] of each) {
        const named = { displayName: '', labels, owner };
        await datasets.register({ ...named, datasetId: id, files: [{ ...file, sha256 }], spec });
        await weights.register({
          ...named,
          weightsId: id,
          files: [{ fileName: 'config.json', sizeBytes: 1, sha256 }],
        });
      }
      const found = async (labels: Record<string, string>, owner = '') => {
        const page = { after: null, labels, owner };
        const ofDatasets = (await datasets.list({ ...page, datasetsMax: 10 })).datasets
          .map(({ id }) => id)
          .sort();
        const ofWeights = (await weights.list({ ...page, weightsMax: 10 })).weights
          .map(({ id }) => id)
          .sort();
        expect(ofWeights).toEqual(ofDatasets);
        return ofDatasets;
      };
      expect(await found({})).toEqual(['first', 'second', 'third']);
      expect(await found({ team: 'vision' })).toEqual(['first', 'second']);
      expect(await found({ team: 'vision', stage: 'raw' })).toEqual(['first']);
      expect(await found({ team: 'audio' })).toEqual([]);
      expect(await found({}, 'ada')).toEqual(['first', 'third']);
      expect(await found({ team: 'vision' }, 'ada')).toEqual(['first']);
      expect(await datasets.find('first')).toMatchObject({
        labels: { team: 'vision', stage: 'raw' },
        owner: 'ada',
      });
      expect(await weights.find('second')).toMatchObject({ labels: { team: 'vision' }, owner: 'bob' });
    },
  );
});

async function open() {
  const { server } = await runServer({});
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  return client;
}

async function namesOf(datasets: AsyncIterable<{ name: string }>): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of datasets) names.push(name);
  return names;
}

describe('a client', () => {
  it('labels what it uploads, finds it by that, and is its owner', async () => {
    const client = await open();
    const upload = { files: [{ content: 'Some text.' }], labels: { team: 'vision' } };
    const labeled = await client.uploadDataset({ ...upload, datasetId: 'labeled' });
    await client.uploadDataset({ ...upload, datasetId: 'other', labels: {} });
    expect(labeled).toMatchObject({ labels: { team: 'vision' }, owner: 'anyone' });
    expect(await namesOf(client.listDatasets({ labels: { team: 'vision' } }))).toEqual(['datasets/labeled']);
    expect(await namesOf(client.listDatasets({ owner: 'anyone' }))).toHaveLength(2);
    expect(await namesOf(client.listDatasets({ owner: 'somebody' }))).toEqual([]);
    expect(await namesOf(client.listWeights({ labels: { team: 'vision' } }))).toEqual([]);
  });

  it('hears which label is wrong', async () => {
    const client = await open();
    const wrong = client.uploadDataset({ files: [{ content: 'Some text.' }], labels: { '-': 'x' } });
    await expect(wrong).rejects.toMatchObject({ fields: [{ field: 'header.labels' }] });
    await expect(namesOf(client.listWeights({ labels: { '': 'x' } }))).rejects.toMatchObject({
      fields: [{ field: 'labels' }],
    });
  });
});
