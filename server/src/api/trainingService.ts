import { createHash } from 'node:crypto';
import { CreateJobRequest, type Job as JobProto, type TrainingServiceImplementation } from '@relora/sdk/contract';
import type { CallContext } from 'nice-grpc';
import { quote, ServiceError } from '../errors.js';
import type { ControlOptions, ControlResult } from '../jobs/jobControl.js';
import type { JobCursor } from '../jobs/jobStore.js';
import type { Metrics } from '../metrics/metrics.js';
import { admitJob } from './admitJob.js';
import { jobStates } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { parseJobName } from './resourceNames.js';
import { toJob, toJobSpec } from './toProto.js';
import { watchEvents } from './watchJob.js';

type Action = 'pause' | 'resume' | 'cancel';

/** For a wrong state: what the job cannot be, and from where it could. */
const actions: Readonly<Record<Action, { done: string; allowed: string }>> = {
  pause: { done: 'paused', allowed: 'QUEUED, STARTING or RUNNING and not being cancelled' },
  resume: { done: 'resumed', allowed: 'PAUSED' },
  cancel: { done: 'cancelled', allowed: 'QUEUED, STARTING, RUNNING or PAUSED' },
};

/** The gRPC surface of jobs. Handlers translate: request in, call of the domain, response out. */
export function trainingService(parts: ApiParts, metrics: Metrics): TrainingServiceImplementation {
  const { config, store, queue, control, journal, pageTokens, stopping } = parts;
  let watchers = 0;

  return {
    async createJob(request) {
      const checks = new FieldChecks();
      const jobId = checks.id('job_id', request.jobId);
      const displayName = checks.text('display_name', request.displayName, 63);
      const labels = checks.labels('labels', request.labels);
      const requestId = checks.requestId(request.requestId);
      const admission = await admitJob(parts, request.spec).catch((error: unknown) => error as Error);
      // What is wrong beside the specification is told together with it.
      if (checks.problems.length > 0) {
        const others = admission instanceof ServiceError && 'problems' in admission.detail ? admission.detail.problems : [];
        throw new ServiceError('JOB_SPEC_INVALID', { problems: [...checks.problems, ...others] });
      }
      if (admission instanceof Error) throw admission;
      const { spec, estimate, plan, warnings } = admission;
      if (request.validateOnly) {
        return { job: { displayName, labels, spec: toJobSpec(spec) }, estimate, plan, warnings };
      }

      const submission = await queue.submit({ jobId, displayName, labels, spec, requestId, requestDigest: digestOf(request) });
      if (submission === 'full') throw new ServiceError('QUEUE_FULL', { jobsMax: config.queueJobsMax });
      if (submission === 'taken') throw new ServiceError('JOB_EXISTS', { jobId: jobId ?? '' });
      if (submission === 'conflict') throw new ServiceError('REQUEST_ID_REUSED', { requestId: requestId ?? '' });
      return { job: toJob(submission.job), estimate, plan, warnings };
    },

    async estimateJob(request) {
      const { spec, estimate, plan, warnings } = await admitJob(parts, request.spec);
      return { estimate, plan, spec: toJobSpec(spec), warnings };
    },

    async getJob(request) {
      const jobId = parseJobName('name', request.name);
      const job = await store.find(jobId);
      if (job === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
      return { job: toJob(job) };
    },

    async listJobs(request) {
      const checks = new FieldChecks();
      const jobsMax = parsePageSize(checks, request.pageSize);
      const states = request.states.map((state, index) => checks.choice(`states[${index}]`, state, jobStates, Object.keys(jobStates).join(', ')));
      const labels = checks.labels('labels', request.labels);
      const orders = { '': 'newestFirst', 'create_time desc': 'newestFirst', create_time: 'oldestFirst' } as const;
      const order = checks.choice('order_by', request.orderBy, orders, '"create_time desc" or "create_time"') ?? 'newestFirst';
      if (checks.problems.length > 0) throw new ServiceError('REQUEST_INVALID', { problems: checks.problems });

      const wanted = states.filter((state) => state !== undefined);
      const same = ['jobs', [...wanted].sort(), Object.entries(labels).sort(), order];
      const after = pageTokens.read<JobCursor>(same, request.pageToken);
      const page = await store.list({ states: wanted, labels, order, after, jobsMax });
      return { jobs: page.jobs.map(toJob), nextPageToken: pageTokens.write(same, page.next) };
    },

    async *watchJob(request, context) {
      const jobId = parseJobName('name', request.name);
      const { afterSequence } = request;
      if (afterSequence < 0) {
        throw new ServiceError('REQUEST_INVALID', { problems: [{ field: 'after_sequence', expected: 'a whole number from 0', got: String(afterSequence) }] });
      }
      const job = await store.find(jobId);
      if (job === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
      if (afterSequence > job.lastSequence) throw new ServiceError('STORE_CHANGED', { jobId, afterSequence, newestSequence: job.lastSequence });
      if (watchers >= config.watchersMax) throw new ServiceError('WATCHERS_FULL', { watchersMax: config.watchersMax });
      metrics.watchers.set(++watchers);
      try {
        yield* watchEvents(journal, jobId, afterSequence, config.heartbeatSeconds * 1000, context.signal, stopping);
      } finally {
        metrics.watchers.set(--watchers);
      }
    },

    async pauseJob(request, context) {
      return { job: await act('pause', request, context) };
    },

    async resumeJob(request, context) {
      return { job: await act('resume', request, context) };
    },

    async cancelJob(request, context) {
      return { job: await act('cancel', request, context) };
    },
  };

  /** Acts and waits until the trainer, if there is one, has done what was asked: saved its checkpoint, or stopped. */
  async function act(action: Action, request: { name: string; requestId: string; etag: string }, context: CallContext): Promise<JobProto> {
    const jobId = parseJobName('name', request.name);
    const result = await control[action](jobId, parseOptions(request));
    if (result.outcome !== 'done') throw refusal(action, jobId, request, result);
    const settled = await control.whenSettled(jobId, AbortSignal.any([context.signal, stopping]));
    if (settled === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
    if (settled.stopRequest !== null && stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
    return toJob(settled);
  }
}

function refusal(action: Action, jobId: string, request: { requestId: string; etag: string }, result: ControlResult): ServiceError {
  switch (result.outcome) {
    case 'notFound':
      return new ServiceError('JOB_NOT_FOUND', { jobId });
    case 'conflict':
      return new ServiceError('REQUEST_ID_REUSED', { requestId: request.requestId });
    case 'changed':
      return new ServiceError('JOB_CHANGED', { jobId, etag: request.etag });
    default: {
      const { done, allowed } = actions[action];
      return new ServiceError('JOB_STATE_WRONG', { jobId, state: result.job.state.toUpperCase(), action: done, allowed });
    }
  }
}

function parseOptions(request: { requestId: string; etag: string }): ControlOptions {
  const checks = new FieldChecks();
  const requestId = checks.requestId(request.requestId);
  const version = /^"([1-9][0-9]{0,14})"$/.exec(request.etag)?.[1];
  if (request.etag !== '' && version === undefined) checks.add('etag', 'the etag of a job, with its quotes', quote(request.etag));
  if (checks.problems.length > 0) throw new ServiceError('REQUEST_INVALID', { problems: checks.problems });
  return { requestId, version: version === undefined ? null : Number(version) };
}

/** SHA-256 of all that was asked for. Fields of a newer contract are not known here and do not count. */
function digestOf(request: CreateJobRequest): string {
  // Maps have no order on the wire: a retry may send its labels in another one.
  const labels = Object.fromEntries(Object.entries(request.labels).sort(([a], [b]) => (a < b ? -1 : 1)));
  const bytes = CreateJobRequest.encode({ ...request, labels, requestId: '' }).finish();
  return createHash('sha256').update(bytes).digest('hex');
}
