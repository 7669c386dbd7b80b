// Fetches the weights of every job that succeeded since the last time, one folder per job. For cron:
// 0 3 * * *  node nightlyFetch.js /srv/models team=tales
import { existsSync } from 'node:fs';
import { rename } from 'node:fs/promises';
import { join } from 'node:path';
import { JobState, ReloraClient } from '@relora/sdk';

/** Fetches missing weights and returns the ids of their jobs. If it is interrupted, the next run continues. */
export async function fetchNew(
  client: ReloraClient,
  folder: string,
  labels: Record<string, string> = {},
): Promise<string[]> {
  const fetched: string[] = [];
  for await (const { name } of client.listJobs({ states: [JobState.SUCCEEDED], labels })) {
    const id = name.slice('jobs/'.length);
    if (existsSync(join(folder, id))) continue;
    // Gets its final name only when it is complete and verified; an interrupted download resumes in the partial folder.
    const partial = join(folder, `${id}.partial`);
    await client.downloadArtifact(name, partial);
    await rename(partial, join(folder, id));
    fetched.push(id);
  }
  return fetched;
}

if (process.argv[1]?.endsWith('nightlyFetch.js')) {
  const [folder = 'models', ...pairs] = process.argv.slice(2);
  const client = new ReloraClient();
  try {
    const labels = Object.fromEntries(pairs.map((pair) => pair.split('=', 2) as [string, string]));
    console.log((await fetchNew(client, folder, labels)).join('\n'));
  } finally {
    client.close();
  }
}
