import { createLog, readConfig } from '@relora/server';
import { createMetrics } from '../../server/dist/metrics/metrics.js';
import { Quotas } from '../../server/dist/quotas/quotas.js';
import { makeServerParts } from '../../server/dist/serverParts.js';
import { openStore } from '../../server/dist/store/openStore.js';

/** The parts of a server on a data folder, without its ports; the caller closes the store. */
export async function openParts(dataFolder, settings = {}) {
  const config = readConfig({ RELORA_DATA_FOLDER: dataFolder, RELORA_LOG_LEVEL: 'silent', ...settings });
  const store = await openStore(dataFolder);
  const parts = makeServerParts({
    config,
    log: createLog(config),
    store,
    metrics: createMetrics(),
    quotas: new Quotas(),
    stopping: new AbortController().signal,
    onStoreFailure: (error) => {
      throw error;
    },
  });
  return { store, parts };
}

/** A job that no trainer runs: its events are written by hand. */
export async function claimJob({ queue }, { jobId, displayName = '', labels = {}, spec }) {
  await queue.submit({
    ...{ jobId, displayName, labels, spec },
    ...{ warnings: [], origin: null, requestId: null, requestDigest: '' },
  });
  const { job } = await queue.claimNext({ free: ['native'], pins: null, resolve: () => 'native' });
  return { job, key: { jobId: job.id, attempt: job.attempt } };
}
