import {
  Job as JobProto,
  Restart,
  type ListJobsRequest,
  type ListJobsResponse,
  type ListRestartsRequest,
  type ListRestartsResponse,
} from '@relora/sdk/contract';
import type { RestartEntry } from '../jobs/jobJournal.js';
import type { JobCursor } from '../jobs/jobStore.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { fillPage } from './fillPage.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { toJob, toRestart } from './toProto.js';
import type { Principal } from '../access/principal.js';

/** Enough to name each state twice, and short enough to check quickly. */
const statesMax = 20;

const orders = { '': 'newestFirst', 'create_time desc': 'newestFirst', create_time: 'oldestFirst' } as const;

/** One page of jobs. */
export async function listJobs(
  { config, store, pageTokens }: Pick<ApiParts, 'config' | 'store' | 'pageTokens'>,
  request: ListJobsRequest,
  { tenant }: Principal,
): Promise<ListJobsResponse> {
  const checks = new FieldChecks();
  const jobsMax = parsePageSize(checks, request.pageSize);
  checks.count('states', request.states, statesMax);
  const found = request.states
    .slice(0, statesMax)
    .flatMap(
      (value, index) =>
        checks.choice(`states[${index}]`, value, enums.JobState.from, 'a state of JobState') ?? [],
    );
  const states = [...new Set(found)];
  const labels = checks.labels('labels', request.labels);
  const order =
    checks.choice('order_by', request.orderBy, orders, '"create_time desc" or "create_time"') ??
    'newestFirst';
  checks.throwIfWrong();
  // What must stay the same from page to page; the page size may change.
  const filter = {
    list: 'jobs',
    tenant,
    states: [...states].sort(),
    labels: Object.entries(labels).sort(),
    order,
    withDeleted: request.showDeleted,
  };
  const after = pageTokens.read<JobCursor>(filter, request.pageToken);
  const { messages, next } = await fillPage({
    after,
    itemsMax: jobsMax,
    bytesMax: config.pageBytesMax,
    read: async (place, itemsMax) => {
      const page = await store.list({
        tenant,
        states,
        labels,
        order,
        after: place,
        jobsMax: itemsMax,
        withDeleted: request.showDeleted,
      });
      return { items: page.jobs, next: page.next };
    },
    placeOf: ({ createTimeMs, id }) => ({ createTimeMs, id }),
    type: JobProto,
    toMessage: toJob,
  });
  return { jobs: messages as JobProto[], nextPageToken: pageTokens.write(filter, next) };
}

/** One page of a job's restarts, in order. */
export async function listRestarts(
  { config, store, journal, pageTokens }: Pick<ApiParts, 'config' | 'store' | 'journal' | 'pageTokens'>,
  request: ListRestartsRequest,
  { tenant }: Principal,
): Promise<ListRestartsResponse> {
  const checks = new FieldChecks();
  const jobId = parseJobName(tenant, 'parent', request.parent);
  const restartsMax = parsePageSize(checks, request.pageSize);
  checks.throwIfWrong();
  await requireJob(store, jobId);
  const filter = { list: 'restarts', jobId };
  const placeOf = ({ body }: RestartEntry) => ({ restart: body.restart });
  const { messages, next } = await fillPage({
    after: pageTokens.read<{ restart: number }>(filter, request.pageToken),
    itemsMax: restartsMax,
    bytesMax: config.pageBytesMax,
    read: async (place, itemsMax) => {
      const found = await journal.restartsAfter(jobId, place?.restart ?? 0, itemsMax + 1);
      const items = found.slice(0, itemsMax);
      return { items, next: found.length > items.length ? placeOf(items.at(-1)!) : null };
    },
    placeOf,
    type: Restart,
    toMessage: toRestart,
  });
  return { restarts: messages as Restart[], nextPageToken: pageTokens.write(filter, next) };
}
