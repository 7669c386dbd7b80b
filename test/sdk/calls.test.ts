import { createServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { ReloraClient } from '@relora/sdk';
import { Status } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { brokenServer, refusal, unavailable } from './brokenServer.js';

test('a repeated call carries the same request id', async () => {
  const ids: string[] = [];
  const told: string[] = [];
  const client = await brokenServer(
    {
      async createJob({ requestId }) {
        ids.push(requestId);
        if (ids.length < 3) throw unavailable();
        return { job: { name: 'jobs/job-1' } };
      },
    },
    { retries: { onRetry: (error) => told.push(error.code) } },
  );
  expect((await client.createJob({})).name).toBe('jobs/job-1');
  expect(ids).toHaveLength(3);
  expect(new Set(ids).size).toBe(1);
  expect(ids[0]).toMatch(/^[0-9a-f-]{36}$/);
  expect(told).toEqual(['UNAVAILABLE', 'UNAVAILABLE']);
});

test('a full queue is asked again only if the server says when', async () => {
  let calls = 0;
  const client = await brokenServer({
    async createJob(_, context) {
      calls++;
      throw refusal(context, Status.RESOURCE_EXHAUSTED, 'QUEUE_FULL', calls === 1 ? 1 : undefined);
    },
  });
  await expect(client.createJob({})).rejects.toMatchObject({ reason: 'QUEUE_FULL' });
  expect(calls).toBe(2);
});

test('a server that stays away is given up after the attempts', async () => {
  let calls = 0;
  const client = await brokenServer(
    {
      async getJob() {
        calls++;
        throw unavailable();
      },
    },
    { retries: { attemptsMax: 3 } },
  );
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  expect(calls).toBe(3);
});

test('the deadline ends a call here and is told to the server', async () => {
  const server = createServer();
  const timeouts: (string | string[] | undefined)[] = [];
  server.on('stream', (_, headers) => void timeouts.push(headers['grpc-timeout']));
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const client = new ReloraClient({ address: `127.0.0.1:${port}`, deadlineMs: 200 });
  onTestFinished(() => {
    client.close();
    server.close();
  });
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  expect(timeouts).toEqual([expect.stringMatching(/^\d{1,3}m$/)]);
});

test('a wait that would pass the deadline is not begun', async () => {
  const client = await brokenServer(
    {
      async getJob(_, context) {
        throw refusal(context, Status.UNAVAILABLE, 'SERVER_STOPPING', 900);
      },
    },
    { deadlineMs: 500 },
  );
  const start = performance.now();
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({
    reason: 'SERVER_STOPPING',
    retryDelayMs: 900,
  });
  expect(performance.now() - start).toBeLessThan(400);
});

test('a closed client answers at once', async () => {
  const client = new ReloraClient({ address: '127.0.0.1:1' });
  client.close();
  await expect(client.getJob('jobs/job-1')).rejects.toMatchObject({
    code: 'CANCELLED',
    message: 'The client was closed',
  });
});

test('many calls leave no listeners on the signal of the caller', async () => {
  const client = await brokenServer({ getJob: async () => ({ job: { name: 'jobs/job-1' } }) });
  const { signal } = new AbortController();
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => void warnings.push(warning);
  process.on('warning', onWarning);
  onTestFinished(() => void process.off('warning', onWarning));
  for (let call = 0; call < 30; call++) await client.getJob('jobs/job-1', { signal });
  await new Promise(setImmediate);
  expect(warnings).toEqual([]);
});
