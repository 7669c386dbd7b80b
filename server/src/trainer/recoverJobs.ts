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
 * Queues jobs again that a dead server had, and removes unfinished files. A job for which that fails is left as it is, as are those that
 * this server runs.
 */
export async function recoverJobs(parts: RecoverParts): Promise<void> {
  const { store, attempts, leases, config, log } = parts;
  // No delay: starting the server took time enough. It still counts, so that a job that crashes the machine is given up in the end.
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

/** What remains wastes space but does no harm: a new attempt uses other names. */
async function clearLeftovers({ checkpoints, artifacts, log }: RecoverParts, id: string): Promise<string[]> {
  try {
    return [...(await checkpoints.clearOrphans(id)), ...(await artifacts.clearOrphans(id))];
  } catch (error) {
    log.warn({ jobId: id, err: error }, 'Leftovers could not be removed');
    return [];
  }
}
