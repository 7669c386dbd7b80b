import { readFileSync } from 'node:fs';
import { ReloraClient } from '@relora/sdk';
import { table } from '../table.mjs';
import { fillStore } from './fillStore.mjs';
import { quantile, startServer, withFolder } from './server.mjs';

const counts = (process.env.BENCH_JOBS ?? '1,1000,10000,100000').split(',').map(Number);
const rounds = 20;

/** Costs of a server with many finished jobs: start, a page of the list, a scrape, memory. */
export async function manyJobs() {
  const rows = [];
  for (const count of counts)
    await withFolder(async (folder) => {
      await fillStore(folder, count);
      const server = await startServer(folder);
      const client = new ReloraClient({ address: server.grpcAddress });
      try {
        const rest = () => new Promise((resolve) => setTimeout(resolve, 1100)); // a scrape is cached for a second
        /** Number of jobs, up to a limit. */
        const listed = async (pageSize, countMax) => {
          const jobs = [];
          for await (const job of client.listJobs({ pageSize })) if (jobs.push(job.name) === countMax) break;
          return jobs.length;
        };
        const list = [];
        for (let round = 0; round < rounds; round++) {
          const beganMs = performance.now();
          await listed(50, 50);
          list.push(performance.now() - beganMs);
        }
        const all = performance.now();
        const found = await listed(500, Infinity);
        const allSeconds = (performance.now() - all) / 1000;
        if (found !== count) throw new Error(`${found} of ${count} jobs were listed`);
        const scrape = [];
        for (let round = 0; round < 5; round++) {
          await rest();
          const beganMs = performance.now();
          await (await fetch(`http://${server.httpAddress}/metrics`)).text();
          scrape.push(performance.now() - beganMs);
        }
        rows.push([
          count,
          (server.startMs / 1000).toFixed(2),
          quantile(list, 0.5).toFixed(1),
          quantile(list, 0.99).toFixed(1),
          allSeconds.toFixed(2),
          quantile(scrape, 0.5).toFixed(1),
          quantile(scrape, 0.99).toFixed(1),
          (residentBytes(server.pid) / 1e6).toFixed(0),
        ]);
      } finally {
        client.close();
        await server.stop();
      }
    });
  return `## Finished jobs in the store\n\n${table(
    ['jobs', 'start s', 'page of 50, ms', 'p99', 'list of all, s', 'scrape ms', 'worst', 'resident MB'],
    rows,
  )}`;
}

function residentBytes(pid) {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(kilobytes) * 1024;
}
