import { quote, ServiceError } from '../errors.js';
import { isTerminal, type Job } from '../jobs/job.js';
import type { ControlResult } from '../jobs/jobControl.js';
import type { DeletionResult } from '../jobs/jobDeletion.js';
import type { FieldChecks } from './fieldChecks.js';
import { toEtag } from './toProto.js';

/** Which states each action needs, for the error of a refused one. */
const actions = {
  pause: { done: 'paused', allowed: 'QUEUED, STARTING or RUNNING' },
  resume: { done: 'resumed', allowed: 'PAUSED' },
  cancel: { done: 'cancelled', allowed: 'QUEUED, STARTING, RUNNING or PAUSED' },
  update: { done: 'updated', allowed: 'QUEUED, STARTING, RUNNING or PAUSED' },
  delete: { done: 'deleted', allowed: 'SUCCEEDED, FAILED or CANCELLED' },
} as const;

export type JobAction = keyof typeof actions;

const etagPattern = /^"([1-9][0-9]{0,14})"$/;

/** The version of a job in an etag; null for an empty one. */
export function parseEtag(checks: FieldChecks, etag: string): number | null {
  const match = etagPattern.exec(etag);
  if (etag !== '' && match === null) checks.add('etag', 'the etag of a Job, with its quotes', quote(etag));
  return match === null ? null : Number(match[1]);
}

/** The job, if the action was done; throws for any other result. */
export function requireDone(
  result: ControlResult | DeletionResult,
  action: JobAction,
  jobId: string,
  { etag = '', requestId = '' }: { etag?: string; requestId?: string },
): Job {
  switch (result.outcome) {
    case 'done':
      return result.job;
    case 'notFound':
      throw new ServiceError('JOB_NOT_FOUND', { jobId });
    case 'usedBy':
      throw new ServiceError('JOB_IN_USE', { jobId, usedBy: result.name });
    case 'conflict':
      throw new ServiceError('REQUEST_ID_REUSED', { requestId });
    case 'changed':
      throw new ServiceError('JOB_CHANGED', { jobId, etag, presentEtag: toEtag(result.job.version) });
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
