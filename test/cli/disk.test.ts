import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

test('data sets are listed, things deleted and brought back, and what is stored is read again', async () => {
  const dataFolder = temporaryFolder();
  const { address } = await realServer({ RELORA_DATA_FOLDER: dataFolder });
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(20)));
  expect((await relora(['datasets'])).output).toBe('No data sets.\n');
  const upload = ['upload', 'tiny.txt', '--held-out', '0.1', '--title', 'Tales', '--id'];
  for (const id of ['tiny-text', 'other-text']) expect((await relora([...upload, id])).code).toBe(0);
  expect((await relora(['run', '--spec', 'spec.json', '--id', 'job-one'])).code).toBe(0);

  // Listed, the newest first.
  const rows = (await relora(['datasets'])).output.trim().split('\n').slice(1);
  expect(rows).toHaveLength(2);
  expect(rows[0]).toMatch(
    /^datasets\/other-text +READY +[\d.]+ k? *[\d.]+ k? *\d{4}-\d\d-\d\d \d\d:\d\d +Tales$/,
  );
  const listed = (await relora(['datasets', '--json'])).json()[0] as { datasets: { name: string }[] };
  expect(listed.datasets.map(({ name }) => name)).toEqual(['datasets/other-text', 'datasets/tiny-text']);

  // Read again: everything, one thing, and one with a changed bit.
  expect(await relora(['scrub'])).toMatchObject({ code: 0, output: '' });
  expect((await relora(['scrub'])).errors).toMatch(/^\d+ files with [\d.]+ \wB read, 0 damaged\.\n$/);
  const files = (await relora(['scrub', 'job-one', '--json'])).json();
  expect(files.length).toBeGreaterThan(5);
  expect(files.every(({ name }) => (name as string).startsWith('jobs/job-one/'))).toBe(true);
  const shard = join(dataFolder, 'datasets/other-text/prepared/train-00000.bin');
  const flipped = readFileSync(shard);
  flipped[7]! ^= 1;
  writeFileSync(shard, flipped);
  const damaged = await relora(['scrub', 'datasets/-']);
  expect(damaged.code).toBe(6);
  expect(damaged.output).toMatch(
    /^datasets\/other-text train-00000\.bin: Its SHA-256 is \w{64}, not \w{64}\n$/,
  );
  expect(damaged.errors).toMatch(/, 1 damaged\.\n$/);
  expect(await relora(['scrub', 'datasets/nobody'])).toMatchObject({ code: 3, output: '' });

  // An invalid request, or one for something that does not exist, deletes nothing of the others.
  const wrong = await relora(['delete', 'datasets/other-text', 'artifacts/job-one']);
  expect(wrong).toMatchObject({ code: 2, output: '' });
  expect(wrong.errors).toContain('artifacts/job-one: expected a job, jobs/… or datasets/…');
  expect(await relora(['delete', 'jobs/nobody'])).toMatchObject({ code: 3, output: '' });
  expect((await relora(['delete', 'jobs/nobody', '--missing-ok'])).output).toBe(
    'jobs/nobody does not exist.\n',
  );
  const dry = await relora(['delete', 'job-one', '--dry-run']);
  expect(dry.output).toMatch(/^jobs\/job-one can be deleted: [\d.]+ \wB would be freed\.\n$/);
  expect((await relora(['describe', 'job-one'])).code).toBe(0);

  // Deleted, and brought back.
  const deleted = await relora(['delete', 'jobs/job-one', 'datasets/other-text']);
  expect(deleted.code).toBe(0);
  expect(deleted.output).toMatch(
    /^jobs\/job-one is deleted\. Its [\d.]+ \wB are freed at \S+Z; until then `relora undelete jobs\/job-one` restores it\.$/m,
  );
  expect(deleted.errors).toMatch(/^[\d.]+ \wB in all\.\n$/);
  expect((await relora(['list'])).output).toBe('No jobs.\n');
  expect((await relora(['list', '--deleted'])).output).toMatch(/^jobs\/job-one +deleted /m);
  expect((await relora(['describe', 'job-one'])).output).toMatch(/^deleted +\S+Z; purged at \S+Z$/m);
  expect((await relora(['datasets'])).output).not.toContain('other-text');
  expect((await relora(['datasets', '--deleted'])).output).toMatch(/^datasets\/other-text +DELETED /m);
  const back = await relora(['undelete', 'jobs/job-one', 'datasets/other-text']);
  expect(back).toMatchObject({
    code: 0,
    output: 'jobs/job-one is restored.\ndatasets/other-text is restored.\n',
  });
  expect((await relora(['datasets'])).output).toMatch(/^datasets\/other-text +READY /m);
  expect((await relora(['describe', 'job-one'])).output).toContain('succeeded');
});
