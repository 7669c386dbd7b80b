import { Client, credentials, Metadata } from '@grpc/grpc-js';
import * as contract from '@relora/sdk/contract';
import { table } from '../table.mjs';
import { fillServer } from '../worstRequests.mjs';
import { quantile, startBare, startServer, withFolder } from './server.mjs';

const secondsEach = Number(process.env.BENCH_SECONDS ?? 2);
const atOnce = 8;
const pass = (bytes) => bytes;

/** Unary calls, eight at a time on one connection, each compared with an echo of the same size by bare grpc-js. */
export async function unary() {
  return await withFolder(async (folder) => {
    const server = await startServer(folder);
    const bare = await startBare();
    const open = (address) => new Client(address, credentials.createInsecure());
    const [client, bareClient] = [open(server.grpcAddress), open(bare.grpcAddress)];
    try {
      const job = await fillServer(server.grpcAddress);
      const rows = [];
      for (const [path, bytes] of requestsOf(job)) {
        const own = await measure(client, path, bytes);
        const echo = await measure(bareClient, '/bare/Echo', Buffer.alloc(own.answerBytes));
        rows.push([
          path.replace('/relora.v1.', ''),
          own.answer,
          own.answerBytes,
          own.rate.toFixed(0),
          own.p99.toFixed(1),
          echo.rate.toFixed(0),
          echo.p99.toFixed(1),
          `${((100 * own.rate) / echo.rate).toFixed(0)} %`,
        ]);
      }
      return `## Calls with one answer, ${atOnce} at once on one connection, ${secondsEach} s each\n\n${table(
        ['method', 'answer', 'bytes', 'calls/s', 'p99 ms', 'echo/s', 'echo p99 ms', 'of the echo'],
        rows,
      )}`;
    } finally {
      client.close();
      bareClient.close();
      await server.stop();
      await bare.stop();
    }
  });
}

/** Calls a method for a while, `parallel` calls at a time: calls per second and the 99th percentile of their time. */
export async function measure(client, path, bytes, metadata = new Metadata()) {
  const times = [];
  let answer = 'OK';
  let answerBytes = 0;
  const call = async () =>
    await new Promise((resolve) =>
      client.makeUnaryRequest(path, pass, pass, bytes, metadata, (error, data) => {
        if (error !== null) answer = String(error.code);
        answerBytes = data?.length ?? answerBytes;
        resolve();
      }),
    );
  // Some calls start a process: fifty of those would take minutes.
  const warmUntil = performance.now() + secondsEach * 1000;
  for (let warm = 0; warm < 50 && performance.now() < warmUntil; warm++) await call();
  const beganMs = performance.now();
  const endsAt = beganMs + secondsEach * 1000;
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      while (performance.now() < endsAt) {
        const sentMs = performance.now();
        await call();
        times.push(performance.now() - sentMs);
      }
    }),
  );
  const rate = times.length / ((performance.now() - beganMs) / 1000);
  return { answer, answerBytes, rate, p99: quantile(times, 0.99) };
}

/** A typical request for each unary method; for those that would change something, one that is refused or changes nothing. */
function requestsOf(job) {
  const spec = {
    model: { preset: 'demo' },
    dataset: 'datasets/text',
    stepCount: 20,
    warmStart: { stepCount: 0 },
    adapter: { rank: 4, cycleStepCount: 5 },
    batch: { sequenceLength: 32, sequenceCount: 2 },
  };
  const given = {
    CreateJob: { spec, validateOnly: true },
    EstimateJob: { spec },
    CompareJobs: { names: [job, 'jobs/other'] },
    ExportWeights: { job },
    CreateWebhook: { url: 'http://refused.example.com/' },
    GenerateText: { model: `${job}/artifacts/none` },
  };
  const names = {
    DatasetService: 'datasets/text',
    WeightsService: 'weights/none',
    WebhookService: 'webhooks/none',
  };
  return Object.values(contract)
    .filter((value) => typeof value?.fullName === 'string' && typeof value.methods === 'object')
    .flatMap(({ fullName, methods }) =>
      Object.values(methods)
        .filter(({ requestStream, responseStream }) => !requestStream && !responseStream)
        // The deprecated name of ForkJob.
        .filter(({ name }) => name !== 'RestartJob')
        .map(({ name, requestType }) => {
          const of = names[fullName.replace('relora.v1.', '')] ?? job;
          const known = Object.keys(requestType.fromPartial({}));
          const usual = Object.fromEntries(
            ['name', 'parent'].filter((key) => known.includes(key)).map((key) => [key, of]),
          );
          const request = requestType.fromPartial(given[name] ?? usual);
          return [`/${fullName}/${name}`, Buffer.from(requestType.encode(request).finish())];
        }),
    );
}
