// `npm run bench:service`: calls and streams compared with a bare grpc-js server in the same run, how old events are when they arrive, the
// cost of many jobs, and how long another client waits during the worst request of each method. Words after `--` select sections.
import { availableParallelism, cpus, loadavg } from 'node:os';
import { events } from './service/events.mjs';
import { longJobs } from './service/longJobs.mjs';
import { manyJobs } from './service/manyJobs.mjs';
import { protection } from './service/protection.mjs';
import { streams } from './service/streams.mjs';
import { unary } from './service/unary.mjs';
import { worst } from './service/worst.mjs';

const sections = { streams, unary, protection, events, manyJobs, longJobs, worst };
const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !Object.hasOwn(sections, name));
if (unknown.length > 0) {
  console.error(`Expected some of ${Object.keys(sections).join(', ')}, got ${unknown.join(', ')}`);
  process.exit(2);
}
console.log(`${cpus()[0].model}, ${availableParallelism()} processors, Node ${process.version}`);
for (const [name, section] of Object.entries(sections)) {
  if (asked.length > 0 && !asked.includes(name)) continue;
  const before = loadavg()[0];
  const text = await section();
  console.log(`\n${text}\n\nLoad average ${before.toFixed(1)} before, ${loadavg()[0].toFixed(1)} after.`);
}
