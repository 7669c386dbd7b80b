import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

test('who changed what comes newest first, as a table and as JSON, by caller and tenant', async () => {
  const folder = temporaryFolder();
  const { address } = await realServer();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  expect((await relora(['audit'])).output).toBe('No entries.\n');
  expect((await relora(['upload', 'tiny.txt', '--held-out', '0.1', '--id', 'tiny-text'])).code).toBe(0);
  expect((await relora(['cancel', 'job-nobody-made'])).code).not.toBe(0);
  expect((await relora(['delete', 'datasets/tiny-text'])).errors).toBe('');

  const [{ entries }] = (await relora(['audit', '--json'])).json() as [{ entries: Record<string, string>[] }];
  expect(entries.map(({ method, resource, result }) => [method, resource, result])).toEqual([
    ['DatasetService/DeleteDataset', 'datasets/tiny-text', 'OK'],
    ['TrainingService/CancelJob', 'jobs/job-nobody-made', 'JOB_NOT_FOUND'],
    ['DatasetService/UploadDataset', 'datasets/tiny-text', 'OK'],
  ]);
  const lines = (await relora(['audit', '--limit', '2'])).output.split('\n');
  expect(lines[0]).toMatch(/^TIME +CALLER +TENANT +FROM +METHOD +RESOURCE +RESULT$/);
  expect(lines.slice(1, 3).map((line) => line.split(/ +/)[4])).toEqual([
    'DatasetService/DeleteDataset',
    'TrainingService/CancelJob',
  ]);
  expect(lines).toHaveLength(4);
  expect((await relora(['audit', '--by', 'somebody-else'])).output).toBe('No entries.\n');
  expect((await relora(['audit', '--of', 'another'])).output).toBe('No entries.\n');
  expect(await relora(['audit', '--limit', 'few'])).toMatchObject({ code: 2, output: '' });
});
