import { createHash } from 'node:crypto';
import type { RunSpec, RunUpdate } from '@relora/engine/plan';
import { CreateJobRequest, JobState, type CreateJobResponse, type DeepPartial } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { admitJob, costOf, type AdmitParts, type AdmittedJob } from './admitJob.js';
import { FieldChecks } from './fieldChecks.js';
import { ingestBaseWeights, type IngestParts } from './ingestFiles.js';
import { parseUpdates } from './jobUpdate.js';
import type { ApiParts } from './parts.js';
import { admitWith, parseNewJob, repeatedJob, sortedLabels, submitJob } from './submitJob.js';
import { toJob, toSpec } from './toProto.js';
import type { Principal } from '../access/principal.js';

/** Checks a whole job, then stores and queues it; for validateOnly it answers what would be stored. */
export async function createJob(
  parts: AdmitParts & IngestParts & Pick<ApiParts, 'queue'>,
  request: CreateJobRequest,
  caller: Principal,
): Promise<DeepPartial<CreateJobResponse>> {
  const { tenant } = caller;
  const checks = new FieldChecks();
  const named = parseNewJob(checks, tenant, request);
  const requestDigest = digestOf(request);
  let admitted: AdmittedJob;
  let updates: RunUpdate[] = [];
  try {
    admitted = await admitWith(checks, async () => {
      let spec: RunSpec | null = null;
      try {
        const whole = await admitJob(parts, tenant, request.spec, { whenTooLarge: 'refuse' });
        spec = whole.spec;
        return whole;
      } finally {
        // Also after a refusal, so that one answer has all problems.
        updates = parseUpdates(checks, request.updates, spec, parts.config.stepsMax);
      }
    });
  } catch (error) {
    // This may be the retry of a call whose answer was lost; what was acknowledged then is not refused now.
    const isRetry = error instanceof ServiceError && !request.validateOnly;
    const first = isRetry ? await repeatedJob(parts, tenant, named.requestId, requestDigest) : undefined;
    if (first === undefined) throw error;
    return { job: toJob(first), ...(await costOf(parts, first)), warnings: [] };
  }
  if (request.validateOnly) {
    const { spec, ...cost } = admitted;
    const { displayName, labels } = named;
    return { job: { displayName, labels, spec: toSpec(spec), state: JobState.UNSPECIFIED }, ...cost };
  }
  const spec = await ingestBaseWeights(parts, caller, admitted.spec);
  return await submitJob(parts, { ...named, origin: null, updates, requestDigest }, { ...admitted, spec });
}

/** SHA-256 of everything that a request asks for, in the order of the field numbers, without unknown fields. */
function digestOf(request: CreateJobRequest): string {
  const labels = sortedLabels(request);
  const asked = CreateJobRequest.encode({ ...request, labels, requestId: '', validateOnly: false }).finish();
  return createHash('sha256').update(asked).digest('hex');
}
