import type { Job as JobProto } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { isTerminal, type Job } from '../jobs/job.js';
import type { ControlOptions, ControlResult } from '../jobs/jobControl.js';
import { parseEtag } from './deleteJob.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { parseJobName } from './resourceNames.js';
import { toEtag, toJob } from './toProto.js';
import type { CallContext } from '../grpc/service.js';

type Action = 'pause' | 'resume' | 'cancel';
type SteerRequest = { name: string; requestId: string; etag: string };

/** Pauses, resumes or cancels, and answers once the trainer has done its part. */
export async function steerJob(
  { control, stopping }: Pick<ApiParts, 'control' | 'stopping'>,
  action: Action,
  request: SteerRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<{ job: JobProto }> {
  const jobId = parseJobName(caller.tenant, 'name', request.name);
  const result = await control[action](jobId, parseControl(request));
  const job = requireDone(result, action, jobId, request);
  if (job.stopRequest === null) return { job: toJob(job) };
  const settled = await control.whenSettled(jobId, AbortSignal.any([signal, stopping]));
  if (settled === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
  // The wish is stored and outlives this server; only the answer is not there yet.
  if (settled.stopRequest !== null && stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
  return { job: toJob(settled) };
}

/** What each action asks of the state of a job, for its refusal. */
const actions: Readonly<Record<Action | 'update', { done: string; allowed: string }>> = {
  pause: { done: 'paused', allowed: 'QUEUED, STARTING or RUNNING' },
  resume: { done: 'resumed', allowed: 'PAUSED' },
  cancel: { done: 'cancelled', allowed: 'QUEUED, STARTING, RUNNING or PAUSED' },
  update: { done: 'updated', allowed: 'QUEUED, STARTING, RUNNING or PAUSED' },
};

function parseControl({ requestId, etag }: SteerRequest): ControlOptions {
  const checks = new FieldChecks();
  const id = checks.requestId(requestId);
  const version = parseEtag(checks, etag);
  checks.throwIfWrong();
  return { requestId: id, version };
}

/** The job of a result that is one; throws for any other. */
export function requireDone(
  result: ControlResult,
  action: Action | 'update',
  jobId: string,
  request: SteerRequest,
): Job {
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
