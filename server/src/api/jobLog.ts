import { setTimeout as sleep } from 'node:timers/promises';
import type { GetJobLogRequest, GetJobLogResponse } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { isTerminal } from '../jobs/job.js';
import type { CallContext } from '../grpc/service.js';
import { folders } from '../store/folders.js';
import { attemptsIn, LogReader, type LogLine } from '../trainer/jobLog.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';

/** How often a reader that follows polls: fast enough to look live on a terminal, and cheap even for hundreds of readers. */
const lookMs = 250;

/** What the trainers of a job printed: in one attempt or in all that are kept; with `follow`, until the job has ended. */
export async function* jobLog(
  { config, store, stopping }: Pick<ApiParts, 'config' | 'store' | 'stopping'>,
  request: GetJobLogRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): AsyncGenerator<GetJobLogResponse> {
  const jobId = parseJobName(caller.tenant, 'name', request.name);
  const checks = new FieldChecks();
  if (request.attempt < 0) checks.add('attempt', 'a whole number from 0', request.attempt);
  checks.throwIfWrong();
  const { attempt: newest } = await requireJob(store, jobId);
  if (request.attempt > newest) {
    checks.add('attempt', `0 for all, or an attempt of the job, up to ${newest}`, request.attempt);
    checks.throwIfWrong();
  }
  const folder = folders.log(config.dataFolder, jobId);
  const readers = new Map<number, LogReader>();
  for (;;) {
    if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
    if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
    // The job is read first, so that everything it printed before it ended is read afterwards.
    const job = await requireJob(store, jobId);
    const attempts = request.attempt > 0 ? [request.attempt] : await attemptsIn(folder);
    for (const attempt of attempts) {
      const reader = readers.get(attempt) ?? new LogReader(folder, attempt);
      readers.set(attempt, reader);
      for await (const lines of reader.read()) yield { lines: lines.map(toLine) };
    }
    const isOver = isTerminal(job.state) || (request.attempt > 0 && request.attempt < job.attempt);
    if (!request.follow || isOver) return;
    await sleep(lookMs, undefined, { signal: AbortSignal.any([signal, stopping]) }).catch(() => {});
  }
}

function toLine({ attempt, timeMs, isError, text }: LogLine): GetJobLogResponse['lines'][number] {
  return { attempt, time: new Date(timeMs), isError, text };
}
