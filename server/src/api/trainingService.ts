import { createHash } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import {
  CreateJobRequest,
  JobState,
  type Job as JobProto,
  type TrainingServiceDefinition,
} from '@relora/sdk/contract';
import { isTerminal, type Job } from '../jobs/job.js';
import type { ControlOptions, ControlResult } from '../jobs/jobControl.js';
import type { JobCursor } from '../jobs/jobStore.js';
import { quote, ServiceError } from '../errors.js';
import type { Implementation } from '../grpc/service.js';
import { admitJob, costOf, type AdmitParts, type AdmittedJob } from './admitJob.js';
import { compareJobs } from './compareJobs.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { forkJob } from './forkJob.js';
import { metricHistory } from './metricHistory.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { parseJobName } from './resourceNames.js';
import { admitWith, repeatedJob, submitJob } from './submitJob.js';
import { toEtag, toJob, toRestart, toSpec } from './toProto.js';
import { watchEvents } from './watchJob.js';

const etagPattern = /^"([1-9][0-9]{0,14})"$/;

type TrainingParts = AdmitParts &
  Pick<ApiParts, 'queue' | 'control' | 'journal' | 'checkpoints' | 'pageTokens' | 'metrics'>;

/** Jobs over gRPC. Handlers translate: request in, domain call, answer out. Rules live in jobs/. */
export function trainingService(parts: TrainingParts): Implementation<typeof TrainingServiceDefinition> {
  const { config, store, control, journal, pageTokens, metrics } = parts;
  let watcherCount = 0;
  // Each watch listens for the end of the server; Node would take more than ten of them for a leak.
  setMaxListeners(0, parts.stopping);

  const findJob = async (jobId: string): Promise<Job> => {
    const job = await store.find(jobId);
    if (job === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
    return job;
  };

  /** Pauses, resumes or cancels, and answers once the trainer has done its part. */
  const steer = async (
    action: Action,
    request: SteerRequest,
    signal: AbortSignal,
  ): Promise<{ job: JobProto }> => {
    const jobId = parseJobName('name', request.name);
    const result = await control[action](jobId, parseControl(request));
    const job = requireDone(result, action, jobId, request);
    if (job.stopRequest === null) return { job: toJob(job) };
    const settled = await control.whenSettled(jobId, AbortSignal.any([signal, parts.stopping]));
    if (settled === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
    // The wish is stored and outlives this server; only the answer is not there yet.
    if (settled.stopRequest !== null && parts.stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
    return { job: toJob(settled) };
  };

  return {
    async createJob(request) {
      const checks = new FieldChecks();
      const jobId = checks.id('job_id', request.jobId);
      const displayName = checks.text('display_name', request.displayName, 63);
      const labels = checks.labels('labels', request.labels);
      const requestId = checks.requestId(request.requestId);
      const requestDigest = digestOf(request);
      let admitted: AdmittedJob;
      try {
        admitted = await admitWith(
          checks,
          async () => await admitJob(parts, request.spec, { whenTooLarge: 'refuse' }),
        );
      } catch (error) {
        // It may be the retry of a call whose answer was lost; what was acknowledged then is not refused now.
        const isRetry = error instanceof ServiceError && !request.validateOnly;
        const first = isRetry ? await repeatedJob(parts, requestId, requestDigest) : undefined;
        if (first === undefined) throw error;
        return { job: toJob(first), ...(await costOf(parts, first.spec)), warnings: [] };
      }
      if (request.validateOnly) {
        const { spec, ...cost } = admitted;
        return { job: { displayName, labels, spec: toSpec(spec), state: JobState.UNSPECIFIED }, ...cost };
      }
      return await submitJob(
        parts,
        { jobId, displayName, labels, origin: null, requestId, requestDigest },
        admitted,
      );
    },

    async estimateJob(request) {
      const { spec, estimate, plan, warnings } = await admitJob(parts, request.spec, {
        whenTooLarge: 'warn',
      });
      return { estimate, plan, spec: toSpec(spec), warnings };
    },

    async getJob(request) {
      return { job: toJob(await findJob(parseJobName('name', request.name))) };
    },

    async listJobs(request) {
      const checks = new FieldChecks();
      const jobsMax = parsePageSize(checks, request.pageSize);
      const states = request.states.flatMap(
        (value, index) =>
          checks.choice(`states[${index}]`, value, enums.JobState.from, 'a state of JobState') ?? [],
      );
      const labels = checks.labels('labels', request.labels);
      const order =
        checks.choice('order_by', request.orderBy, orders, '"create_time desc" or "create_time"') ??
        'newestFirst';
      checks.throwIfWrong();
      // What must stay the same from page to page; a different size may be asked for.
      const filter = {
        list: 'jobs',
        states: [...states].sort(),
        labels: Object.entries(labels).sort(),
        order,
      };
      const after = pageTokens.read<JobCursor>(filter, request.pageToken);
      const { jobs, next } = await store.list({ states, labels, order, after, jobsMax });
      return { jobs: jobs.map(toJob), nextPageToken: pageTokens.write(filter, next) };
    },

    async *watchJob(request, context) {
      const jobId = parseJobName('name', request.name);
      const { afterSequence } = request;
      if (afterSequence < 0) {
        throw new ServiceError('REQUEST_INVALID', {
          problems: [
            { field: 'after_sequence', expected: 'a whole number from 0', got: String(afterSequence) },
          ],
        });
      }
      const { lastSequence } = await findJob(jobId);
      if (afterSequence > lastSequence) {
        throw new ServiceError('SEQUENCE_BEYOND_END', {
          jobId,
          afterSequence,
          oldestSequence: 1,
          newestSequence: lastSequence,
        });
      }
      if (watcherCount >= config.watchersMax)
        throw new ServiceError('WATCHERS_FULL', { watchersMax: config.watchersMax });
      metrics.watchers.set(++watcherCount);
      try {
        yield* watchEvents(
          journal,
          jobId,
          afterSequence,
          config.heartbeatSeconds * 1000,
          context.signal,
          parts.stopping,
        );
      } finally {
        metrics.watchers.set(--watcherCount);
      }
    },

    async pauseJob(request, context) {
      return await steer('pause', request, context.signal);
    },

    async resumeJob(request, context) {
      return await steer('resume', request, context.signal);
    },

    async cancelJob(request, context) {
      return await steer('cancel', request, context.signal);
    },

    async listRestarts(request) {
      const checks = new FieldChecks();
      const jobId = parseJobName('parent', request.parent);
      const restartsMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      await findJob(jobId);
      const filter = { list: 'restarts', jobId };
      const after = pageTokens.read<{ restart: number }>(filter, request.pageToken)?.restart ?? 0;
      const found = await journal.restartsAfter(jobId, after, restartsMax + 1);
      const page = found.slice(0, restartsMax);
      const next = found.length > page.length ? { restart: page.at(-1)!.body.restart } : null;
      return { restarts: page.map(toRestart), nextPageToken: pageTokens.write(filter, next) };
    },

    async forkJob(request) {
      return await forkJob(parts, request);
    },

    async restartJob(request) {
      return await forkJob(parts, request);
    },

    async getMetricHistory(request, context) {
      const job = await findJob(parseJobName('name', request.name));
      return await metricHistory(parts, job, request, context.signal);
    },

    async compareJobs(request, context) {
      return await compareJobs(parts, request, context.signal);
    },
  };
}

const orders = { '': 'newestFirst', 'create_time desc': 'newestFirst', create_time: 'oldestFirst' } as const;

type Action = 'pause' | 'resume' | 'cancel';
type SteerRequest = { name: string; requestId: string; etag: string };

/** What each action asks of the state of a job, for its refusal. */
const actions: Readonly<Record<Action, { done: string; allowed: string }>> = {
  pause: { done: 'paused', allowed: 'QUEUED, STARTING or RUNNING' },
  resume: { done: 'resumed', allowed: 'PAUSED' },
  cancel: { done: 'cancelled', allowed: 'QUEUED, STARTING, RUNNING or PAUSED' },
};

function parseControl({ requestId, etag }: SteerRequest): ControlOptions {
  const checks = new FieldChecks();
  const id = checks.requestId(requestId);
  const match = etagPattern.exec(etag);
  if (etag !== '' && match === null) checks.add('etag', 'the etag of a Job, with its quotes', quote(etag));
  checks.throwIfWrong();
  return { requestId: id, version: match === null ? null : Number(match[1]) };
}

function requireDone(result: ControlResult, action: Action, jobId: string, request: SteerRequest): Job {
  switch (result.outcome) {
    case 'done':
      return result.job;
    case 'notFound':
      throw new ServiceError('JOB_NOT_FOUND', { jobId });
    case 'conflict':
      throw new ServiceError('REQUEST_ID_REUSED', { requestId: request.requestId });
    case 'changed':
      throw new ServiceError('JOB_CHANGED', {
        jobId,
        etag: request.etag,
        presentEtag: toEtag(result.job.version),
      });
    case 'wrongState': {
      const { state, stopRequest } = result.job;
      const { done, allowed } = actions[action];
      const present =
        stopRequest === null || isTerminal(state)
          ? state.toUpperCase()
          : `${state.toUpperCase()} and about to be ${actions[stopRequest].done}`;
      throw new ServiceError('JOB_STATE_WRONG', { jobId, state: present, action: done, allowed });
    }
  }
}

/** SHA-256 of all that a request asks for, in the order of the field numbers; fields that we do not know are not in it. */
function digestOf(request: CreateJobRequest): string {
  const labels = Object.fromEntries(Object.entries(request.labels).sort(([a], [b]) => (a < b ? -1 : 1)));
  const asked = CreateJobRequest.encode({ ...request, labels, requestId: '', validateOnly: false }).finish();
  return createHash('sha256').update(asked).digest('hex');
}
