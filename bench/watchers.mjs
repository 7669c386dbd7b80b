// npm run bench:watchers: hundreds of watchers of one fast job over gRPC, with thinned steps as views request them, and one that receives
// every event. Prints how old the events were on arrival. `--interval 0`: all receive every event, through cheap readers, since they share
// the server's processors here. `--unread 300`: as many additional watchers that request every event and read none, to measure the memory
// that they cost the server.
// the memory that they cost the server.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { connect } from 'node:http2';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ReloraClient } from '@relora/sdk';
import { rawWatch } from './sides/rawWatch.mjs';

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
const onFirst = () => {
  if (--waitingCount === 0) server.stdin.write('go\n');
};
const watch = async (options) => {
  const ages = [];
  let lastSequence = 0;
  let eventCount = 0;
  for await (const event of client.watch('jobs/fast', options)) {
    // The first event existed before: its arrival shows that the stream works, and later events count.
    if (eventCount === 0) onFirst();
    if (event.kind === 'step') ages.push(Date.now() - event.time.getTime());
    eventCount++;
    lastSequence = event.sequence;
  }
  return { ages, lastSequence, eventCount };
};
/** A hundred streams per connection, the server's limit. */
const sessions = Array.from({ length: Math.ceil(watchers / 100) + Math.ceil(unread / 100) }, () =>
  connect(`http://${address}`),
);
const raw = (index, options) => rawWatch(sessions[Math.floor(index / 100)], 'jobs/fast', options);
for (let index = 0; index < unread; index++)
  void raw(100 * Math.ceil(watchers / 100) + index, { isRead: false });
const readers = Array.from({ length: watchers }, (_, index) =>
  stepIntervalMs === 0 ? raw(index, { onFirst }) : watch({ stepIntervalMs }),
);
const whole = watch({});
const results = await Promise.all(readers);
const every = await whole;
for (const session of sessions) session.destroy();
const { elu, rssBytes } = JSON.parse(lines.join('').trim().split('\n').at(-1));
server.stdin.end();
await once(server, 'close');
const { cpuSeconds } = JSON.parse(lines.join('').trim().split('\n').at(-1));
client.close();
rmSync(folder, { recursive: true, force: true });

const ages = results.flatMap((result) => result.ages).sort((a, b) => a - b);
const at = (share) => ages[Math.min(ages.length - 1, Math.floor(share * ages.length))];
const eventCount = every.lastSequence;
console.log(`${watchers} watchers, ${rate} events/s for ${seconds} s, a step each ${stepIntervalMs} ms:`);
console.log(
  `  age on arrival: median ${at(0.5)} ms, p99 ${at(0.99)} ms, worst ${at(1)} ms (${ages.length} measured)`,
);
console.log(
  `  the watcher of everything: ${every.eventCount} of ${eventCount} events, worst ${Math.max(...every.ages)} ms`,
);
const messageCount = results.reduce(
  (sum, { messageCount, eventCount }) => sum + (messageCount ?? eventCount),
  0,
);
console.log(
  `  server: busy ${(100 * elu).toFixed(0)} % of the time, ${(rssBytes / 2 ** 20).toFixed(0)} MiB; ` +
    `${cpuSeconds.toFixed(1)} s of processor time, ${((1e6 * cpuSeconds) / messageCount).toFixed(2)} µs a message`,
);
const isWhole = results.every(
  ({ messageCount }) => messageCount === undefined || messageCount === eventCount,
);
const isHeld = at(1) <= 2000 && every.eventCount === eventCount && eventCount >= rate * seconds && isWhole;
console.log(
  isHeld ? 'All within 2 s, nothing lost from the journal' : 'NOT within 2 s, or events are missing',
);
process.exitCode = isHeld ? 0 : 1;
