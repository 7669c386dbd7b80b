import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { fillServer, longRequests, worstRequests } from '../../bench/worstRequests.mjs';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder } from './parts.js';
import { rawCall, rawClient } from './rawCalls.js';

const preload = fileURLToPath(new URL('../../bench/stretches.mjs', import.meta.url));

/**
 * What others may have to wait for at most, in processor time: a client then waits less than 100 ms beside several of them. Ten
 * times what is seen on a quiet machine, so that no busy one decides it; what this is about were seconds.
 */
const stretchMsMax = 100;

/** A request is too long that is so in each of them. */
const repetitionsMax = 5;

test('no request of any method keeps the server from everybody else for long, whatever is in it', async () => {
  const server = await startServerProcess(temporaryFolder(), { NODE_OPTIONS: `--import ${preload}` });
  const job = await fillServer(server.grpcAddress);
  const client = rawClient(server.grpcAddress);
  const requests: [label: string, path: string, bytes: Buffer][] = [
    ...worstRequests(job),
    ...Array.from(longRequests(), ([path, bytes]): [string, string, Buffer] => [
      `${path} of ${bytes.length} bytes`,
      path,
      bytes,
    ]),
  ];
  const tooLong: string[] = [];
  let longest = 0;
  for (const [label, path, bytes] of requests) {
    const send = async () =>
      await Promise.all(
        Array.from({ length: 4 }, async () => await rawCall(client, path, bytes, { deadlineMs: 300_000 })),
      );
    await send(); // code that runs the first time is compiled meanwhile
    // Once can be the garbage of what was before: what a request itself takes it takes each time.
    let least = Infinity;
    for (let count = 0; count < repetitionsMax && least > stretchMsMax; count++) {
      const seen = server.logged.length;
      await send();
      // A line that was written before another answer has arrived by then.
      await rawCall(client, '/relora.v1.ServerService/GetServerInfo', Buffer.alloc(0));
      const stretches = server.logged.slice(seen).flatMap(({ stretchMs }) => (stretchMs as number) ?? []);
      least = Math.min(least, Math.max(0, ...stretches));
    }
    longest = Math.max(longest, least);
    if (least > stretchMsMax) tooLong.push(`${label}: ${least} ms`);
  }
  expect(tooLong).toEqual([]);
  expect(new Set(requests.map(([, path]) => path)).size).toBeGreaterThan(30);
  expect(longest).toBeGreaterThan(0); // they are measured at all
});
