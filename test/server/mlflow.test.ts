import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JobSpec } from '@relora/sdk/contract';
import { expect, it, onTestFinished } from 'vitest';
import { Mlflow } from '../../server/dist/trackers/mlflow.js';
import { allEvents, openParts, readyDataset, submit, temporaryFolder } from './parts.js';

/** A local server that redirects, or gives an empty answer; records its requests. */
async function listen(location?: string): Promise<{ url: URL; asked: IncomingMessage[] }> {
  const asked: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    asked.push(request);
    response
      .writeHead(location === undefined ? 200 : 307, location === undefined ? {} : { location })
      .end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`), asked };
}

it('a redirect of MLflow takes the token and the values of a job nowhere else', async () => {
  const parts = await openParts();
  await readyDataset(parts);
  const job = await submit(parts, { labels: { 'mlflow.experiment': '../../2.0/mlflow/x?y#z' } });
  const elsewhere = await listen();
  const { url, asked } = await listen(elsewhere.url.href);
  const tokenFile = join(temporaryFolder(), 'token');
  writeFileSync(tokenFile, 'planted-token\n');
  const mlflow = new Mlflow({ url, experiment: 'relora', tokenFile, specOf: () => JobSpec.fromPartial({}) });
  const events = await allEvents(parts, job.id);
  await expect(mlflow.write(job, events, '', new AbortController().signal)).rejects.toThrow();
  expect(asked.map((request) => [request.headers.authorization, request.url])).toEqual([
    [
      'Bearer planted-token',
      '/api/2.0/mlflow/experiments/get-by-name?experiment_name=..%2F..%2F2.0%2Fmlflow%2Fx%3Fy%23z',
    ],
  ]);
  expect(elsewhere.asked).toEqual([]);
});
