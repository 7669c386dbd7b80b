import type { Job as JobProto } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import type { ControlOptions } from '../jobs/jobControl.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { parseEtag, requireDone } from './requireDone.js';
import { parseJobName } from './resourceNames.js';
import { toJob } from './toProto.js';
import type { CallContext } from '../grpc/service.js';

type Action = 'pause' | 'resume' | 'cancel';
type SteerRequest = { name: string; requestId: string; etag: string };

/** Pauses, resumes or cancels a job, and answers once the trainer has reacted. */
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
  // The request is stored and outlives this server; only the outcome is not known yet.
  if (settled.stopRequest !== null && stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
  return { job: toJob(settled) };
}

function parseControl({ requestId, etag }: SteerRequest): ControlOptions {
  const checks = new FieldChecks();
  const id = checks.requestId(requestId);
  const version = parseEtag(checks, etag);
  checks.throwIfWrong();
  return { requestId: id, version };
}
