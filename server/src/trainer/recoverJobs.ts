import type { ArtifactStore } from '../artifacts/artifactStore.js';
import type { Config } from '../config.js';
import type { CheckpointStore } from '../jobs/checkpointStore.js';
import type { JobAttempts } from '../jobs/jobAttempts.js';
import type { JobStore } from '../jobs/jobStore.js';
import type { Leases } from '../store/leases.js';
import { isOfStore } from '../store/storeError.js';
import type { Logger } from 'pino';

interface RecoverParts {
  store: JobStore;
  leases: Leases;
  attempts: JobAttempts;
  checkpoints: CheckpointStore;
  artifacts: ArtifactStore;
  config: Config;
  log: Logger;
}

/**
 * Puts jobs that a dead server left behind back into the queue and clears their leftovers. One that cannot be is left alone, and
 * so are those that this server runs.
 */
export async function recoverJobs(parts: RecoverParts): Promise<void> {
  const { store, attempts, leases, config, log } = parts;
  // No delay: the server's own start was one. It still counts, so that a job that takes the machine down is given up.
  const rule = { attemptsWithoutProgressMax: config.attemptsWithoutProgressMax, retryDelayMs: 0 };
  for (const key of await store.freeAttempts(leases)) {
    if (leases.isHeld('jobs', key.jobId)) continue;
    const { jobId } = key;
    const removed = await clearLeftovers(parts, jobId);
    try {
      const after = await attempts.takenOver(key, 'The server ended while the job ran', rule, leases);
      if (after === 'stale') continue;
      log.warn({ jobId, removed, state: after.state }, 'A job was left by a server that ended');
    } catch (error) {
      if (isOfStore(error)) throw error;
      log.error({ jobId, err: error }, 'A job that a server left cannot be put right');
    }
  }
}

/** What stays is a waste of space and no harm: what a new attempt writes has other names. */
async function clearLeftovers({ checkpoints, artifacts, log }: RecoverParts, id: string): Promise<string[]> {
  try {
    return [...(await checkpoints.clearOrphans(id)), ...(await artifacts.clearOrphans(id))];
  } catch (error) {
    log.warn({ jobId: id, err: error }, 'Leftovers could not be removed');
    return [];
  }
}
