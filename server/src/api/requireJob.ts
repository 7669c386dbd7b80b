import { ServiceError } from '../errors.js';
import type { Job } from '../jobs/job.js';
import type { JobStore } from '../jobs/jobStore.js';

/** The job with this id. Throws JOB_NOT_FOUND. */
export async function requireJob(store: JobStore, jobId: string): Promise<Job> {
  const job = await store.find(jobId);
  if (job === undefined) throw new ServiceError('JOB_NOT_FOUND', { jobId });
  return job;
}
