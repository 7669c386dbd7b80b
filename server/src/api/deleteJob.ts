import type {
  DeleteJobRequest,
  DeleteJobResponse,
  UndeleteJobRequest,
  UndeleteJobResponse,
} from '@relora/sdk/contract';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { parseEtag, requireDone } from './requireDone.js';
import { parseJobName } from './resourceNames.js';
import { toJob } from './toProto.js';
import type { Principal } from '../access/principal.js';

export type DeleteJobParts = Pick<ApiParts, 'jobDeletion' | 'disk'>;

/** Deletes a job that has ended; for validateOnly it answers whether that is possible and what it would free. */
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
  const job = toJob(requireDone(result, 'delete', jobId, { etag }));
  return { job, freedBytes: await disk.freedBytes('jobs', jobId) };
}

/** Restores a deleted job. */
export async function undeleteJob(
  { jobDeletion }: DeleteJobParts,
  { name }: UndeleteJobRequest,
  { tenant }: Principal,
): Promise<UndeleteJobResponse> {
  const jobId = parseJobName(tenant, 'name', name);
  return { job: toJob(requireDone(await jobDeletion.undelete(jobId), 'delete', jobId, {})) };
}
