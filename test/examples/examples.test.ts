import { randomUUID } from 'node:crypto';
import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseJobSpec } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { fetchNew } from '../../examples/nightlyFetch.js';
import { makeService } from '../../examples/service.js';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';

async function serverWithText() {
  const { client } = await realServer();
  const path = join(temporaryFolder(), 'tiny.txt');
  writeFileSync(path, tinyText());
  await client.uploadDataset({ datasetId: 'tiny-text', files: [{ path }] });
  return client;
}

test('the service launches a job once, reports it, waits for it, and passes on what is wrong', async () => {
  const client = await serverWithText();
  const app = makeService(client);
  onTestFinished(async () => await app.close());
  const headers = { 'idempotency-key': randomUUID() };
  const payload = { name: 'for-others', dataset: 'datasets/tiny-text', steps: 4 };
  const first = await app.inject({ method: 'POST', url: '/models', payload, headers });
  expect([first.statusCode, first.headers.location]).toEqual([202, '/models/for-others']);
  const again = await app.inject({ method: 'POST', url: '/models', payload, headers });
  expect(again.statusCode).toBe(202);
  expect((await app.inject({ method: 'POST', url: '/models', payload })).statusCode).toBe(409);

  const result = await app.inject('/models/for-others/result');
  expect(result.json()).toEqual({
    name: 'for-others',
    state: 'JOB_STATE_SUCCEEDED',
    artifacts: [expect.stringMatching(/^jobs\/for-others\/artifacts\//)],
  });
  expect((await app.inject('/models/for-others')).json()).toMatchObject({
    step: 4 + 1,
    state: 'JOB_STATE_SUCCEEDED',
  });

  const unknown = await app.inject('/models/nobody');
  expect([unknown.statusCode, unknown.json()]).toMatchObject([404, { reason: 'JOB_NOT_FOUND' }]);
  const bad = await app.inject({
    method: 'POST',
    url: '/models',
    payload: { ...payload, name: 'other-one', dataset: 'datasets/none' },
  });
  expect([bad.statusCode, bad.json()]).toMatchObject([404, { reason: 'DATASET_NOT_FOUND' }]);
  expect((await app.inject({ method: 'POST', url: '/models', payload: { name: 'x' } })).statusCode).toBe(400);
});

test('the nightly fetcher brings each succeeded job once, and only those that are asked for', async () => {
  const client = await serverWithText();
  const spec = parseJobSpec(tinySpec(20));
  for (const [jobId, team] of [
    ['tales-one', 'tales'],
    ['tales-two', 'tales'],
    ['other-one', 'other'],
  ] as const)
    await client.createJob(spec, { jobId, labels: { team } });
  for (const id of ['tales-one', 'tales-two', 'other-one']) await client.waitForJob(`jobs/${id}`);
  const folder = temporaryFolder();
  expect((await fetchNew(client, folder, { team: 'tales' })).sort()).toEqual(['tales-one', 'tales-two']);
  expect(existsSync(join(folder, 'tales-one', 'model.safetensors'))).toBe(true);
  expect(await fetchNew(client, folder, { team: 'tales' })).toEqual([]);
  rmSync(join(folder, 'tales-two'), { recursive: true });
  expect(await fetchNew(client, folder, { team: 'tales' })).toEqual(['tales-two']);
  expect(readdirSync(folder).sort()).toEqual(['tales-one', 'tales-two']);
});
