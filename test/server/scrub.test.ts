import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ScrubResponse } from '@relora/sdk/contract';
import { expect, onTestFinished, test } from 'vitest';
import { releasedFolder } from '../golden/releasedFolder.js';
import { openApi, refusalOf, type Api } from './apiServer.js';
import { openParts, readyDataset } from './parts.js';
import { ofFileAlone, releasedFolderReason } from './testStore.js';

/** A folder of 0.1.0 with finished and paused jobs, data sets and weights. */
async function openReleased(): Promise<{ api: Api; dataFolder: string }> {
  const { dataFolder, remove } = releasedFolder();
  onTestFinished(remove);
  return { api: await openApi({}, { parts: await openParts({}, dataFolder) }), dataFolder };
}

async function scrubbed(api: Api, name = ''): Promise<ScrubResponse[]> {
  const files: ScrubResponse[] = [];
  for await (const file of api.server.scrub({ name })) files.push(file);
  return files;
}

/** Folder of the files of a resource. */
const folderOf = (name: string): string => (name.startsWith('datasets/') ? `${name}/prepared` : name);

test('a scrub reads all that is stored and names each file that is not what was sealed', async (context) => {
  ofFileAlone(context, releasedFolderReason);
  const { api, dataFolder } = await openReleased();
  const whole = await scrubbed(api);
  expect(whole.filter(({ problem }) => problem !== '')).toEqual([]);
  const kinds = whole.map(({ name }) => name.replace(/^(\w+)\/[^/]+(\/\w+)?.*/, '$1$2'));
  expect(new Set(kinds)).toEqual(new Set(['jobs/artifacts', 'jobs/checkpoints', 'datasets', 'weights']));
  const namesOf = async (name: string) => new Set((await scrubbed(api, name)).map((file) => file.name));
  expect(await namesOf('datasets/pairs')).toEqual(new Set(['datasets/pairs']));
  expect(await namesOf('weights/-')).toEqual(new Set(['weights/tiny']));
  for (const name of await namesOf('jobs/finished')) expect(name).toMatch(/^jobs\/finished\//);

  // One bit of each file in turn; the content of a damaged manifest is not trusted.
  for (const { name, fileName, sizeBytes } of whole) {
    const path = join(dataFolder, folderOf(name), fileName);
    const before = readFileSync(path);
    expect(before.length).toBe(sizeBytes);
    const flipped = Buffer.from(before);
    flipped[flipped.length >> 1]! ^= 4;
    writeFileSync(path, flipped);
    const subject = name.split('/').slice(0, 2).join('/');
    const found = (await scrubbed(api, subject)).filter(({ problem }) => problem !== '');
    expect(found.map((file) => file.fileName)).toContain(fileName);
    for (const { problem } of found) expect(problem).toMatch(/^Its SHA-256 is [0-9a-f]{64}, not/);
    writeFileSync(path, before);
  }

  // Files that are truncated or missing.
  const shard = join(dataFolder, 'datasets/words/prepared/train-00000.bin');
  writeFileSync(shard, readFileSync(shard).subarray(2));
  const model = join(dataFolder, 'weights/tiny/model.safetensors');
  renameSync(model, join(dataFolder, 'away'));
  const damaged = (await scrubbed(api)).filter(({ problem }) => problem !== '');
  expect(damaged.map(({ name, problem }) => [name, problem])).toEqual([
    ['datasets/words', expect.stringMatching(/^It has \d+ bytes, not \d+$/)],
    ['weights/tiny', 'It is missing, or not a file'],
  ]);

  // Deleting something while it is read does not count as damage.
  const reading = api.parts.scrubber.scrub({ kind: 'weights', id: null }, () => {});
  expect((await reading.next()).value).toMatchObject({ name: 'weights/tiny', problem: '' });
  await api.parts.db.deleteFrom('weights').execute();
  expect(await reading.next()).toEqual({ done: true, value: undefined });
});

test('a scrub of what is not there is refused by its name', async () => {
  const api = await openApi();
  await readyDataset(api.parts);
  const reasons = {
    'jobs/nobody': 'JOB_NOT_FOUND',
    'datasets/nobody': 'DATASET_NOT_FOUND',
    'weights/nobody': 'WEIGHTS_NOT_FOUND',
    'jobs/a/artifacts/b': 'REQUEST_INVALID',
    '../etc': 'REQUEST_INVALID',
  };
  for (const [name, reason] of Object.entries(reasons))
    expect((await refusalOf((options) => api.server.scrub({ name }, options))).info.reason, name).toBe(
      reason,
    );
});
