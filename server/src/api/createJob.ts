import { createHash } from 'node:crypto';
import { CreateJobRequest, JobState, type CreateJobResponse, type DeepPartial } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { admitJob, costOf, type AdmitParts, type AdmittedJob } from './admitJob.js';
import { FieldChecks } from './fieldChecks.js';
import { parseUpdates } from './jobUpdate.js';
import type { ApiParts } from './parts.js';
import { admitWith, repeatedJob, submitJob } from './submitJob.js';
import { toJob, toSpec } from './toProto.js';
import type { Principal } from '../access/principal.js';
import { idIn } from '../store/tenantIds.js';

/** Checks a job whole, stores and queues it; for validateOnly it says what would be stored. */
export async function createJob(
  parts: AdmitParts & Pick<ApiParts, 'queue'>,
  request: CreateJobRequest,
  { tenant }: Principal,
): Promise<DeepPartial<CreateJobResponse>> {
  const checks = new FieldChecks();
  const jobId = checks.id('job_id', request.jobId);
  const displayName = checks.text('display_name', request.displayName, 63);
  const labels = checks.labels('labels', request.labels);
  const requestId = checks.requestId(request.requestId);
  const updates = parseUpdates(checks, request.updates, parts.config.stepsMax);
  const requestDigest = digestOf(request);
  let admitted: AdmittedJob;
  try {
    admitted = await admitWith(
      checks,
      async () => await admitJob(parts, tenant, request.spec, { whenTooLarge: 'refuse' }),
    );
  } catch (error) {
    // It may be the retry of a call whose answer was lost; what was acknowledged then is not refused now.
    const isRetry = error instanceof ServiceError && !request.validateOnly;
    const first = isRetry ? await repeatedJob(parts, tenant, requestId, requestDigest) : undefined;
    if (first === undefined) throw error;
    return { job: toJob(first), ...(await costOf(parts, first)), warnings: [] };
  }
  if (request.validateOnly) {
    const { spec, ...cost } = admitted;
    return { job: { displayName, labels, spec: toSpec(spec), state: JobState.UNSPECIFIED }, ...cost };
  }
  return await submitJob(
    parts,
    {
      tenant,
      jobId: jobId && idIn(tenant, jobId),
      displayName,
      labels,
      origin: null,
      updates,
      requestId,
      requestDigest,
    },
    admitted,
  );
}

/** SHA-256 of all that a request asks for, in the order of the field numbers; fields that we do not know are not in it. */
function digestOf(request: CreateJobRequest): string {
  const labels = Object.fromEntries(Object.entries(request.labels).sort(([a], [b]) => (a < b ? -1 : 1)));
  const asked = CreateJobRequest.encode({ ...request, labels, requestId: '', validateOnly: false }).finish();
  return createHash('sha256').update(asked).digest('hex');
}
