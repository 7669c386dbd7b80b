// How long another client waits during the worst request of each method. Each request is sent repeatedly on four connections while GetJob
// is called every five milliseconds on a fifth; the goal is a p99 below 100 ms.
import { GetJobRequest } from '@relora/sdk/contract';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import { table } from '../table.mjs';
import { fillServer, worstRequests } from '../worstRequests.mjs';
import { startServer, withFolder } from './server.mjs';

const secondsEach = Number(process.env.BENCH_SECONDS ?? 3);
const senders = 4;
const pingMs = 5;

/** How long another client waits during the worst request of each method. */
export async function worst() {
  return await withFolder(async (folder) => {
    const server = await startServer(folder);
    try {
      const jobName = await fillServer(server.grpcAddress);
      const rows = [];
      for (const [label, path, request] of worstRequests(jobName))
        rows.push([label, ...(await measure(server.grpcAddress, path, request, jobName))]);
      return `## Another client beside the worst request of each method\n\n${table(
        ['worst request', 'answer', 'its own ms', 'p50 beside it', 'p99 beside it', 'longest'],
        rows,
      )}`;
    } finally {
      await server.stop();
    }
  });
}

/** The request's answer and median time, and the times of GetJob meanwhile. */
async function measure(address, path, request, jobName) {
  const pass = (bytes) => bytes;
  const open = () =>
    new Client(address, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
  const call = (client, method, bytes) =>
    new Promise((resolve) => {
      const stream = client.makeBidiStreamRequest(method, pass, pass, new Metadata(), {
        deadline: Date.now() + 60_000,
      });
      stream.on('data', () => {});
      stream.on('end', () => resolve('OK'));
      stream.on('error', (error) => resolve(`${error.code}`));
      stream.write(bytes);
      stream.end();
    });
  const endsAt = performance.now() + 1000 * secondsEach;
  const own = [];
  let answer = '';
  const heavy = Array.from({ length: path === null ? 0 : senders }, async () => {
    const client = open();
    while (performance.now() < endsAt) {
      const began = performance.now();
      answer = await call(client, path, request);
      own.push(performance.now() - began);
    }
    client.close();
  });
  const client = open();
  const ping = Buffer.from(GetJobRequest.encode({ name: jobName }).finish());
  const beside = [];
  while (performance.now() < endsAt) {
    const began = performance.now();
    await call(client, '/relora.v1.TrainingService/GetJob', ping);
    beside.push(performance.now() - began);
    await new Promise((resolve) => setTimeout(resolve, pingMs));
  }
  await Promise.all(heavy);
  client.close();
  const at = (times, share) => [...times].sort((a, b) => a - b)[Math.floor(share * (times.length - 1))];
  const ms = (value) => (value === undefined ? '–' : value.toFixed(1));
  return [answer || '–', ms(at(own, 0.5)), ms(at(beside, 0.5)), ms(at(beside, 0.99)), ms(at(beside, 1))];
}
