// npm run bench:watchers: hundreds of watchers of one fast job over gRPC, as views ask for it (steps thinned), and one that
// takes every event. Prints how old the events were when they came. With `--unread 300` so many more that ask for every event and read
// none, for the memory that they cost the server.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { connect } from 'node:http2';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ReloraClient } from '@relora/sdk';
import { WatchJobRequest } from '@relora/sdk/contract';

const { values } = parseArgs({
  options: {
    watchers: { type: 'string', default: '300' },
    rate: { type: 'string', default: '1000' },
    seconds: { type: 'string', default: '20' },
    interval: { type: 'string', default: '500' },
    unread: { type: 'string', default: '0' },
  },
});
const [watchers, rate, seconds, stepIntervalMs, unread] = [
  values.watchers,
  values.rate,
  values.seconds,
  values.interval,
  values.unread,
].map(Number);

const folder = mkdtempSync(join(tmpdir(), 'relora-watchers-'));
const program = fileURLToPath(new URL('watchers.server.mjs', import.meta.url));
const server = spawn(process.execPath, [program, folder, String(rate), String(seconds)], {
  stdio: ['pipe', 'pipe', 'inherit'],
});
const lines = [];
server.stdout.setEncoding('utf8').on('data', (text) => lines.push(text));
await once(server.stdout, 'data');
const address = lines[0].trim();

const client = new ReloraClient({ address });
let waitingCount = watchers + 1;
const watch = async (options) => {
  const ages = [];
  let lastSequence = 0;
  let eventCount = 0;
  for await (const event of client.watch('jobs/fast', options)) {
    // The first was there before: with it the stream stands, and what comes from now on counts.
    if (eventCount === 0 && --waitingCount === 0) server.stdin.write('go\n');
    if (event.kind === 'step') ages.push(Date.now() - event.time.getTime());
    eventCount++;
    lastSequence = event.sequence;
  }
  return { ages, lastSequence, eventCount };
};
const unreadSessions = Array.from({ length: Math.ceil(unread / 100) }, () => connect(`http://${address}`));
const watchPath = '/relora.v1.TrainingService/WatchJob';
const request = WatchJobRequest.encode(
  WatchJobRequest.fromPartial({ name: 'jobs/fast', acceptSpans: true }),
).finish();
for (let count = 0; count < unread; count++) {
  const headers = {
    ':method': 'POST',
    ':path': watchPath,
    'content-type': 'application/grpc',
    te: 'trailers',
  };
  const stream = unreadSessions[Math.floor(count / 100)].request(headers).on('error', () => {});
  stream.end(Buffer.concat([Buffer.from([0, 0, 0, 0, request.length]), request]));
}
const thinned = Array.from({ length: watchers }, () => watch({ stepIntervalMs }));
const whole = watch({});
const results = await Promise.all(thinned);
const every = await whole;
for (const session of unreadSessions) session.destroy();
const { elu, rssBytes } = JSON.parse(lines.join('').trim().split('\n').at(-1));
server.stdin.end();
await once(server, 'exit');
client.close();
rmSync(folder, { recursive: true, force: true });

const ages = results.flatMap((result) => result.ages).sort((a, b) => a - b);
const at = (share) => ages[Math.min(ages.length - 1, Math.floor(share * ages.length))];
const eventCount = every.lastSequence;
console.log(`${watchers} watchers, ${rate} events/s for ${seconds} s, a step each ${stepIntervalMs} ms:`);
console.log(
  `  age on arrival: median ${at(0.5)} ms, p99 ${at(0.99)} ms, worst ${at(1)} ms (${ages.length} messages)`,
);
console.log(
  `  the watcher of everything: ${every.eventCount} of ${eventCount} events, worst ${Math.max(...every.ages)} ms`,
);
console.log(`  server: busy ${(100 * elu).toFixed(0)} % of the time, ${(rssBytes / 2 ** 20).toFixed(0)} MiB`);
const isHeld = at(1) <= 2000 && every.eventCount === eventCount && eventCount >= rate * seconds;
console.log(
  isHeld ? 'All within 2 s, nothing lost from the journal' : 'NOT within 2 s, or events are missing',
);
process.exitCode = isHeld ? 0 : 1;
