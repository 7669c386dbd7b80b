import type {
  ListJobsRequest,
  ListJobsResponse,
  ListRestartsRequest,
  ListRestartsResponse,
} from '@relora/sdk/contract';
import type { JobCursor } from '../jobs/jobStore.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { toJob, toRestart } from './toProto.js';

const orders = { '': 'newestFirst', 'create_time desc': 'newestFirst', create_time: 'oldestFirst' } as const;

/** One page of jobs. */
export async function listJobs(
  { store, pageTokens }: Pick<ApiParts, 'store' | 'pageTokens'>,
  request: ListJobsRequest,
): Promise<ListJobsResponse> {
  const checks = new FieldChecks();
  const jobsMax = parsePageSize(checks, request.pageSize);
  const states = request.states.flatMap(
    (value, index) =>
      checks.choice(`states[${index}]`, value, enums.JobState.from, 'a state of JobState') ?? [],
  );
  const labels = checks.labels('labels', request.labels);
  const order =
    checks.choice('order_by', request.orderBy, orders, '"create_time desc" or "create_time"') ??
    'newestFirst';
  checks.throwIfWrong();
  // What must stay the same from page to page; a different size may be asked for.
  const filter = {
    list: 'jobs',
    states: [...states].sort(),
    labels: Object.entries(labels).sort(),
    order,
    withDeleted: request.showDeleted,
  };
  const after = pageTokens.read<JobCursor>(filter, request.pageToken);
  const { jobs, next } = await store.list({
    states,
    labels,
    order,
    after,
    jobsMax,
    withDeleted: request.showDeleted,
  });
  return { jobs: jobs.map(toJob), nextPageToken: pageTokens.write(filter, next) };
}

/** One page of a job's restarts, in their order. */
export async function listRestarts(
  { store, journal, pageTokens }: Pick<ApiParts, 'store' | 'journal' | 'pageTokens'>,
  request: ListRestartsRequest,
): Promise<ListRestartsResponse> {
  const checks = new FieldChecks();
  const jobId = parseJobName('parent', request.parent);
  const restartsMax = parsePageSize(checks, request.pageSize);
  checks.throwIfWrong();
  await requireJob(store, jobId);
  const filter = { list: 'restarts', jobId };
  const after = pageTokens.read<{ restart: number }>(filter, request.pageToken)?.restart ?? 0;
  const found = await journal.restartsAfter(jobId, after, restartsMax + 1);
  const page = found.slice(0, restartsMax);
  const next = found.length > page.length ? { restart: page.at(-1)!.body.restart } : null;
  return { restarts: page.map(toRestart), nextPageToken: pageTokens.write(filter, next) };
}
