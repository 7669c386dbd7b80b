import type { ArtifactStore } from '../artifacts/artifactStore.js';
import type { Config } from '../config.js';
import type { CheckpointStore } from '../jobs/checkpointStore.js';
import type { Job } from '../jobs/job.js';
import type { JobAttempts } from '../jobs/jobAttempts.js';
import type { JobCursor, JobStore } from '../jobs/jobStore.js';
import { isOfStore } from '../store/storeError.js';
import type { Logger } from 'pino';

interface RecoverParts {
  store: JobStore;
  attempts: JobAttempts;
  checkpoints: CheckpointStore;
  artifacts: ArtifactStore;
  config: Config;
  log: Logger;
}

/** Puts jobs that a dead server left behind back into the queue and clears their leftovers. One that cannot be is left alone. */
export async function recoverJobs(parts: RecoverParts): Promise<void> {
  const { attempts, config, log } = parts;
  // No delay: the server's own start was one. It still counts, so that a job that takes the machine down is given up.
  const rule = { attemptsWithoutProgressMax: config.attemptsWithoutProgressMax, retryDelayMs: 0 };
  for (const job of await leftJobs(parts.store)) {
    const removed = await clearLeftovers(parts, job);
    try {
      const key = { jobId: job.id, attempt: job.attempt };
      const after = await attempts.crashed(key, 'The server ended while the job ran', rule);
      const state = after === 'stale' ? job.state : after.state;
      log.warn({ jobId: job.id, removed, state }, 'A job was left by a server that ended');
    } catch (error) {
      if (isOfStore(error)) throw error;
      log.error({ jobId: job.id, err: error }, 'A job that a server left cannot be put right');
    }
  }
}

async function leftJobs(store: JobStore): Promise<Job[]> {
  const left: Job[] = [];
  let after: JobCursor | null = null;
  do {
    const page = await store.list({
      states: ['starting', 'running'],
      labels: {},
      order: 'oldestFirst',
      after,
      jobsMax: 500,
    });
    for (const job of page.jobs) left.push(job);
    after = page.next;
  } while (after !== null);
  return left;
}

/** What stays is a waste of space and no harm: what a new attempt writes has other names. */
async function clearLeftovers({ checkpoints, artifacts, log }: RecoverParts, { id }: Job): Promise<string[]> {
  try {
    return [...(await checkpoints.clearOrphans(id)), ...(await artifacts.clearOrphans(id))];
  } catch (error) {
    log.warn({ jobId: id, err: error }, 'Leftovers could not be removed');
    return [];
  }
}
