import type { TrainingServiceDefinition } from '@relora/sdk/contract';
import type { Implementation } from '../grpc/service.js';
import { admitJob, type AdmitParts } from './admitJob.js';
import { compareJobs } from './compareJobs.js';
import { createJob } from './createJob.js';
import { deleteJob, undeleteJob, type DeleteJobParts } from './deleteJob.js';
import { explainStep, type ExplainParts } from './explainStep.js';
import { forkJob } from './forkJob.js';
import type { IngestParts } from './ingestFiles.js';
import { exportJob, importJob, type JobArchiveParts } from './jobArchive.js';
import { jobLog } from './jobLog.js';
import { listJobs, listRestarts } from './listJobs.js';
import { metricHistory } from './metricHistory.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { steerJob } from './steerJob.js';
import { toExplanation, toJob, toKeptEvaluation, toSpec } from './toProto.js';
import { toUpdate } from './jobUpdate.js';
import { updateJob } from './updateJob.js';
import { JobWatches } from './watchJob.js';

type TrainingParts = AdmitParts &
  IngestParts &
  DeleteJobParts &
  ExplainParts &
  JobArchiveParts &
  Pick<
    ApiParts,
    'queue' | 'control' | 'explainer' | 'journal' | 'checkpoints' | 'pageTokens' | 'identity' | 'metrics'
  >;

/** Jobs over gRPC. Handlers translate: request in, domain call, answer out. The rules are in jobs/. */
export function trainingService(parts: TrainingParts): Implementation<typeof TrainingServiceDefinition> {
  const watches = new JobWatches(parts);
  return {
    createJob: async (request, { caller }) => await createJob(parts, request, caller),
    forkJob: async (request, { caller }) => await forkJob(parts, request, caller),
    restartJob: async (request, { caller }) => await forkJob(parts, request, caller),
    listJobs: async (request, { caller }) => await listJobs(parts, request, caller),
    listRestarts: async (request, { caller }) => await listRestarts(parts, request, caller),
    watchJobs: (request, { signal, caller }) => watches.watchAll(request, signal, caller),
    watchJob: (request, { signal, caller }) => watches.watch(request, signal, caller),
    pauseJob: async (request, context) => await steerJob(parts, 'pause', request, context),
    resumeJob: async (request, context) => await steerJob(parts, 'resume', request, context),
    cancelJob: async (request, context) => await steerJob(parts, 'cancel', request, context),
    getJobLog: (request, context) => jobLog(parts, request, context),
    exportJob: (request, context) => exportJob(parts, request, context),
    importJob: async (request, context) => await importJob(parts, request, context),
    updateJob: async (request, { caller }) => await updateJob(parts, request, caller),
    deleteJob: async (request, { caller }) => await deleteJob(parts, request, caller),
    undeleteJob: async (request, { caller }) => await undeleteJob(parts, request, caller),
    compareJobs: async (request, context) => await compareJobs(parts, request, context),
    explainJob: async (request, context) => {
      const job = await requireJob(parts.store, parseJobName(context.caller.tenant, 'name', request.name));
      const explanation = toExplanation(await parts.explainer.explain(job));
      return { ...explanation, ...(await explainStep(parts, job, request, context)) };
    },

    async estimateJob(request, { caller }) {
      const { spec, estimate, plan, warnings } = await admitJob(parts, caller.tenant, request.spec, {
        whenTooLarge: 'warn',
      });
      return { estimate, plan, spec: toSpec(spec), warnings };
    },

    async getJob(request, { caller }) {
      const job = await requireJob(parts.store, parseJobName(caller.tenant, 'name', request.name));
      const updates = job.updateNumber === 0 ? [] : await parts.store.updatesOf(job.id);
      const evaluations = await parts.store.evaluationsOf(job.id);
      return {
        job: {
          ...toJob(job),
          updates: updates.map(toUpdate),
          evaluations: evaluations.map(toKeptEvaluation),
        },
      };
    },

    async getMetricHistory(request, { signal, caller }) {
      const job = await requireJob(parts.store, parseJobName(caller.tenant, 'name', request.name));
      return await metricHistory(parts, job, request, signal);
    },
  };
}
