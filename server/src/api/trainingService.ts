import type { TrainingServiceDefinition } from '@relora/sdk/contract';
import type { Implementation } from '../grpc/service.js';
import { admitJob, type AdmitParts } from './admitJob.js';
import { compareJobs } from './compareJobs.js';
import { createJob } from './createJob.js';
import { deleteJob, undeleteJob, type DeleteJobParts } from './deleteJob.js';
import { forkJob } from './forkJob.js';
import { listJobs, listRestarts } from './listJobs.js';
import { metricHistory } from './metricHistory.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { steerJob } from './steerJob.js';
import { toJob, toSpec } from './toProto.js';
import { JobWatches } from './watchJob.js';

type TrainingParts = AdmitParts &
  DeleteJobParts &
  Pick<ApiParts, 'queue' | 'control' | 'journal' | 'checkpoints' | 'pageTokens' | 'metrics'>;

/** Jobs over gRPC. Handlers translate: request in, domain call, answer out. Rules live in jobs/. */
export function trainingService(parts: TrainingParts): Implementation<typeof TrainingServiceDefinition> {
  const watches = new JobWatches(parts);
  return {
    createJob: async (request) => await createJob(parts, request),
    forkJob: async (request) => await forkJob(parts, request),
    restartJob: async (request) => await forkJob(parts, request),
    listJobs: async (request) => await listJobs(parts, request),
    listRestarts: async (request) => await listRestarts(parts, request),
    watchJob: (request, { signal }) => watches.watch(request, signal),
    pauseJob: async (request, { signal }) => await steerJob(parts, 'pause', request, signal),
    resumeJob: async (request, { signal }) => await steerJob(parts, 'resume', request, signal),
    cancelJob: async (request, { signal }) => await steerJob(parts, 'cancel', request, signal),
    deleteJob: async (request) => await deleteJob(parts, request),
    undeleteJob: async (request) => await undeleteJob(parts, request),
    compareJobs: async (request, { signal }) => await compareJobs(parts, request, signal),

    async estimateJob(request) {
      const { spec, estimate, plan, warnings } = await admitJob(parts, request.spec, {
        whenTooLarge: 'warn',
      });
      return { estimate, plan, spec: toSpec(spec), warnings };
    },

    async getJob(request) {
      return { job: toJob(await requireJob(parts.store, parseJobName('name', request.name))) };
    },

    async getMetricHistory(request, { signal }) {
      const job = await requireJob(parts.store, parseJobName('name', request.name));
      return await metricHistory(parts, job, request, signal);
    },
  };
}
