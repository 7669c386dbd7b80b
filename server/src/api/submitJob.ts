import type { CreateJobResponse } from '@relora/sdk/contract';
import { ServiceError, type FieldProblem } from '../errors.js';
import type { Job } from '../jobs/job.js';
import type { NewJob } from '../jobs/jobQueue.js';
import type { AdmittedJob } from './admitJob.js';
import type { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { toJob } from './toProto.js';
import { idIn } from '../store/tenantIds.js';

/** The fields of CreateJob and ForkJob other than the specification. */
export function parseNewJob(
  checks: FieldChecks,
  tenant: string,
  request: { jobId: string; displayName: string; labels: Record<string, string>; requestId: string },
): Pick<NewJob, 'tenant' | 'jobId' | 'displayName' | 'labels' | 'requestId'> {
  const jobId = checks.id('job_id', request.jobId);
  return {
    tenant,
    jobId: jobId && idIn(tenant, jobId),
    displayName: checks.text('display_name', request.displayName, 63),
    labels: checks.labels('labels', request.labels),
    requestId: checks.requestId(request.requestId),
  };
}

/** Labels in a fixed order: a map has none, and equal requests must have equal digests. */
export function sortedLabels({ labels }: { labels: Record<string, string> }): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Adds the problems of the rest of a request to those of its specification, so that one answer has them all. */
export async function admitWith(
  checks: FieldChecks,
  admit: () => Promise<AdmittedJob>,
): Promise<AdmittedJob> {
  try {
    const admitted = await admit();
    if (checks.problems.length > 0) throw new ServiceError('REQUEST_INVALID', { problems: checks.problems });
    return admitted;
  } catch (error) {
    if (
      !(error instanceof ServiceError) ||
      error.reason === 'REQUEST_INVALID' ||
      checks.problems.length === 0
    )
      throw error;
    const { problems: ofSpec } = error.detail as { problems?: FieldProblem[] };
    throw new ServiceError('JOB_SPEC_INVALID', { problems: [...checks.problems, ...(ofSpec ?? [])] });
  }
}

/** Stores and queues an admitted job; a repeated request gets the first job. */
export async function submitJob(
  { queue, config }: Pick<ApiParts, 'queue' | 'config'>,
  newJob: Omit<NewJob, 'spec' | 'warnings'>,
  { spec, estimate, plan, warnings }: AdmittedJob,
): Promise<CreateJobResponse> {
  const submission = await queue.submit({ ...newJob, spec, warnings });
  switch (submission) {
    case 'full':
      throw new ServiceError('QUEUE_FULL', { jobsMax: config.queueJobsMax });
    case 'taken':
      throw new ServiceError('JOB_EXISTS', { jobId: newJob.jobId! });
    case 'conflict':
      throw new ServiceError('REQUEST_ID_REUSED', { requestId: newJob.requestId! });
    case 'originDeleted':
      throw new ServiceError('JOB_NOT_FOUND', { jobId: newJob.origin!.jobId });
    case 'weightsDeleted':
      throw new ServiceError('WEIGHTS_NOT_FOUND', { weightsId: spec.baseWeightsName! });
    default:
      if ('deletedDatasetId' in submission)
        throw new ServiceError('DATASET_DELETED', { datasetId: submission.deletedDatasetId });
      if ('leftSteps' in submission)
        throw new ServiceError('CHECKPOINT_NOT_FOUND', {
          jobId: newJob.origin!.jobId,
          wanted: ` of step ${newJob.origin!.step}`,
          steps: submission.leftSteps.join(', '),
        });
      if ('goneJobId' in submission) throw new ServiceError('JOB_NOT_FOUND', { jobId: submission.goneJobId });
      return { job: toJob(submission.job), estimate, plan, warnings };
  }
}

/** The job that this request created earlier; undefined for a new request. */
export async function repeatedJob(
  { queue }: Pick<ApiParts, 'queue'>,
  tenant: string,
  requestId: string | null,
  requestDigest: string,
): Promise<Job | undefined> {
  const first = requestId === null ? undefined : await queue.findRepeated(tenant, requestId, requestDigest);
  if (first !== undefined && 'goneJobId' in first)
    throw new ServiceError('JOB_NOT_FOUND', { jobId: first.goneJobId });
  return first;
}

/** Throws for a deleted job, which can only be read. */
export function requireUndeleted({ id, deleteTimeMs, purgeTimeMs }: Job): void {
  if (deleteTimeMs === null) return;
  const purgeTime = new Date(purgeTimeMs!).toISOString();
  throw new ServiceError('JOB_DELETED', { jobId: id, purgeTime });
}
