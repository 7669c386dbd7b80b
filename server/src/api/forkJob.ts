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
import { changedSpec, firstOmittedAnew, problemsOfFork } from './forkSpec.js';
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

/** Creates a job that begins at a checkpoint of an ended one, with changed settings. */
export async function forkJob(
  parts: ForkParts,
  request: ForkJobRequest,
  { tenant }: Principal,
): Promise<ForkJobResponse> {
  const endedId = parseJobName(tenant, 'name', request.name);
  const checks = new FieldChecks();
  const named = parseNewJob(checks, tenant, request);
  const requestDigest = digestOf(request);
  // Looked up first: when a call is repeated, the ended job, its checkpoint and the limits may have changed.
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
  const wanted = { step: request.checkpointStep, before: firstOmittedAnew(ended.spec, request.spec) };
  const origin = await findOrigin(parts, ended, wanted);
  // Updates made up to the checkpoint are kept: a rate factor as an update, everything else in the new specification.
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

/**
 * A checkpoint of the ended job, or the one that this job itself began at: of a step, or else the newest, or the newest from which the step
 * `before` is still to come.
 */
async function findOrigin(
  { checkpoints, store }: Pick<ApiParts, 'checkpoints' | 'store'>,
  ended: Job,
  { step: wantedStep, before = Infinity }: { step: number | undefined; before: number | undefined },
): Promise<JobOrigin> {
  const originsIn = async (jobId: string): Promise<JobOrigin[]> =>
    (await checkpoints.list(jobId)).map(({ step, folder, manifestSha256 }) => ({
      jobId,
      step,
      folder: basename(folder),
      manifestSha256,
    }));
  const origins = await originsIn(ended.id);
  if (ended.origin !== null) {
    const { jobId, folder } = ended.origin;
    const first = await store.find(jobId);
    const isThere = first !== undefined && first.deleteTimeMs === null;
    const kept = isThere ? (await originsIn(jobId)).find((origin) => origin.folder === folder) : undefined;
    if (kept !== undefined) origins.push(kept);
  }
  const found = origins.find(({ step }) => (wantedStep === undefined ? step <= before : step === wantedStep));
  if (found !== undefined) return found;
  const which = wantedStep ?? (before === Infinity ? undefined : `${before} or before`);
  throw new ServiceError('CHECKPOINT_NOT_FOUND', {
    jobId: ended.id,
    wanted: which === undefined ? '' : ` of step ${which}`,
    steps: [...new Set(origins.map(({ step }) => step))].join(', '),
  });
}

/**
 * SHA-256 of everything that a request asks for, different from that of any CreateJob. It contains the name that the method had in 0.1.0,
 * so that a call repeated after an upgrade is the same request under either name.
 */
function digestOf(request: ForkJobRequest): string {
  const labels = sortedLabels(request);
  const asked = ForkJobRequest.encode({ ...request, labels, requestId: '' }).finish();
  return createHash('sha256').update('RestartJob').update(asked).digest('hex');
}
