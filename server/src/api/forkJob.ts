import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { ForkJobRequest, type ForkJobResponse } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { specAfter } from '@relora/engine/plan';
import { isTerminal, type Job, type JobOrigin } from '../jobs/job.js';
import { admitJob, costOf, type AdmitParts } from './admitJob.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { changedSpec, problemsOfFork } from './forkSpec.js';
import {
  admitWith,
  parseNewJob,
  repeatedJob,
  requireUndeleted,
  sortedLabels,
  submitJob,
} from './submitJob.js';
import { toJob, toSpec } from './toProto.js';
import type { Principal } from '../access/principal.js';

type ForkParts = AdmitParts & Pick<ApiParts, 'queue' | 'checkpoints'>;

/** Makes a job that begins at a checkpoint of an ended one, with changed settings. */
export async function forkJob(
  parts: ForkParts,
  request: ForkJobRequest,
  { tenant }: Principal,
): Promise<ForkJobResponse> {
  const endedId = parseJobName(tenant, 'name', request.name);
  const checks = new FieldChecks();
  const named = parseNewJob(checks, tenant, request);
  const requestDigest = digestOf(request);
  // The ended job, its checkpoint and the limits may be others by the time that a call is repeated.
  const first = await repeatedJob(parts, tenant, named.requestId, requestDigest);
  if (first !== undefined) return { job: toJob(first), ...(await costOf(parts, first)), warnings: [] };

  const ended = await requireJob(parts.store, endedId);
  if (!isTerminal(ended.state)) {
    throw new ServiceError('JOB_STATE_WRONG', {
      jobId: endedId,
      state: ended.state.toUpperCase(),
      action: 'forked',
      allowed: 'SUCCEEDED, FAILED or CANCELLED',
    });
  }
  requireUndeleted(ended);
  const origin = await findOrigin(parts, ended, request.checkpointStep);
  // What was changed of the run up to the checkpoint stays: the rate as a change, all else in the new specification.
  const behind = (await parts.store.updatesOf(endedId)).filter(
    ({ step }) => step !== null && step <= origin.step,
  );
  const updates = behind.map(({ change: { learningRateFactor }, ...update }) => ({
    ...update,
    change: learningRateFactor === undefined ? {} : { learningRateFactor },
  }));
  const spec = changedSpec(toSpec(specAfter(ended.spec, behind)), request.spec);
  const admitted = await admitWith(
    checks,
    async () => await admitJob(parts, tenant, spec, { whenTooLarge: 'refuse' }),
  );
  const problems = problemsOfFork(ended.spec, admitted.spec, origin.step);
  if (problems.length > 0) throw new ServiceError('JOB_SPEC_INVALID', { problems });

  const newJob = {
    ...named,
    displayName: named.displayName || ended.displayName,
    labels: Object.keys(named.labels).length > 0 ? named.labels : ended.labels,
    origin,
    updates,
    requestDigest,
  };
  return await submitJob(parts, newJob, admitted);
}

/** A checkpoint of the ended job, or the one that it began at itself. */
async function findOrigin(
  { checkpoints, store }: Pick<ApiParts, 'checkpoints' | 'store'>,
  ended: Job,
  wantedStep: number | undefined,
): Promise<JobOrigin> {
  const own = await checkpoints.list(ended.id);
  const origins: JobOrigin[] = own.map(({ step, folder, manifestSha256 }) => ({
    jobId: ended.id,
    step,
    folder: basename(folder),
    manifestSha256,
  }));
  if (ended.origin !== null) {
    const first = await store.find(ended.origin.jobId);
    if (first !== undefined && first.deleteTimeMs === null) origins.push(ended.origin);
  }
  const found = origins.find(({ step }) => wantedStep === undefined || step === wantedStep);
  if (found !== undefined) return found;
  throw new ServiceError('CHECKPOINT_NOT_FOUND', {
    jobId: ended.id,
    wanted: wantedStep === undefined ? '' : ` of step ${wantedStep}`,
    steps: [...new Set(origins.map(({ step }) => step))].join(', '),
  });
}

/**
 * SHA-256 of all that a request asks for; another than any CreateJob has. The name is the one that the method had in 0.1.0: a call
 * that is repeated after an upgrade, by either name, is the same request.
 */
function digestOf(request: ForkJobRequest): string {
  const labels = sortedLabels(request);
  const asked = ForkJobRequest.encode({ ...request, labels, requestId: '' }).finish();
  return createHash('sha256').update('RestartJob').update(asked).digest('hex');
}
