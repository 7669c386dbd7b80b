import type {
  DeleteJobRequest,
  DeleteJobResponse,
  UndeleteJobRequest,
  UndeleteJobResponse,
} from '@relora/sdk/contract';
import { quote, ServiceError } from '../errors.js';
import type { Job } from '../jobs/job.js';
import type { DeletionResult } from '../jobs/jobDeletion.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { parseJobName } from './resourceNames.js';
import { toEtag, toJob } from './toProto.js';
import type { Principal } from '../access/principal.js';

export type DeleteJobParts = Pick<ApiParts, 'jobDeletion' | 'disk'>;

const etagPattern = /^"([1-9][0-9]{0,14})"$/;

/** Deletes a job that has ended, or only says whether it can be and what that would free. */
export async function deleteJob(
  { jobDeletion, disk }: DeleteJobParts,
  { name, etag, allowMissing, validateOnly }: DeleteJobRequest,
  { tenant }: Principal,
): Promise<DeleteJobResponse> {
  const jobId = parseJobName(tenant, 'name', name);
  const checks = new FieldChecks();
  const version = parseEtag(checks, etag);
  checks.throwIfWrong();
  const result = await jobDeletion.delete(jobId, { version, validateOnly });
  if (result.outcome === 'notFound' && allowMissing) return { job: undefined, freedBytes: 0 };
  const job = toJob(requireDone(result, jobId, etag));
  return { job, freedBytes: await disk.freedBytes('jobs', jobId) };
}

/** Brings a deleted job back. */
export async function undeleteJob(
  { jobDeletion }: DeleteJobParts,
  { name }: UndeleteJobRequest,
  { tenant }: Principal,
): Promise<UndeleteJobResponse> {
  const jobId = parseJobName(tenant, 'name', name);
  return { job: toJob(requireDone(await jobDeletion.undelete(jobId), jobId, '')) };
}

/** The version of a job that an etag stands for; null for an empty one. */
export function parseEtag(checks: FieldChecks, etag: string): number | null {
  const match = etagPattern.exec(etag);
  if (etag !== '' && match === null) checks.add('etag', 'the etag of a Job, with its quotes', quote(etag));
  return match === null ? null : Number(match[1]);
}

function requireDone(result: DeletionResult, jobId: string, etag: string): Job {
  switch (result.outcome) {
    case 'done':
      return result.job;
    case 'notFound':
      throw new ServiceError('JOB_NOT_FOUND', { jobId });
    case 'usedBy':
      throw new ServiceError('JOB_IN_USE', { jobId, usedBy: result.name });
    case 'changed':
      throw new ServiceError('JOB_CHANGED', { jobId, etag, presentEtag: toEtag(result.job.version) });
    case 'wrongState':
      throw new ServiceError('JOB_STATE_WRONG', {
        jobId,
        state: result.job.state.toUpperCase(),
        action: 'deleted',
        allowed: 'SUCCEEDED, FAILED or CANCELLED',
      });
  }
}
