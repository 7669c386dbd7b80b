import { Schedule, type RunSpec } from '@relora/engine/plan';
import { sql } from 'kysely';
import { timedId } from '../store/timedId.js';
import type { Job, JobOrigin, JobProgress } from './job.js';
import type { JobChange } from './jobChange.js';
import type { JobJournal } from './jobJournal.js';
import { toJob } from './jobRow.js';

export interface NewJob {
  /** Null: the queue makes one that sorts by time. */
  jobId: string | null;
  displayName: string;
  labels: Record<string, string>;
  spec: RunSpec;
  /** The checkpoint that it begins at; null for the beginning. */
  origin: JobOrigin | null;
  /** What is allowed but probably not meant; stands at the head of the journal. */
  warnings: readonly { reason: string; message: string }[];
  /** Makes a repeated submit return the first job. */
  requestId: string | null;
  /** SHA-256 of everything that was asked for (as the client sent it): the same request id with another digest is a conflict. */
  requestDigest: string;
}

/** `conflict`: the request id was used for something else. `taken`: the job id exists. `full`: no place in the queue. */
export type Submission = { job: Job; isRepeated: boolean } | 'full' | 'taken' | 'conflict';

/** Jobs that wait for a slot: rows of the jobs table in the state queued, highest priority first, then oldest first. */
export class JobQueue {
  constructor(
    private readonly journal: JobJournal,
    private readonly options: { jobsMax: number },
  ) {}

  /** The job that a request made earlier, whatever has become of its data set or of the limits since; undefined for a new request. */
  async findRepeated(requestId: string, requestDigest: string): Promise<Job | undefined> {
    const found = await this.journal.change(
      async (change) => await repeatedJob(change, requestId, requestDigest),
    );
    return found === 'conflict' ? undefined : found;
  }

  /** Stores a job and queues it; when this resolves the job survives any crash. A repeated request does not need a place. */
  async submit(newJob: NewJob): Promise<Submission> {
    return await this.journal.change(async (change): Promise<Submission> => {
      const { trx, nowMs } = change;
      if (newJob.requestId !== null) {
        const first = await repeatedJob(change, newJob.requestId, newJob.requestDigest);
        if (first === 'conflict') return first;
        if (first !== undefined) return { job: first, isRepeated: true };
      }
      const id = newJob.jobId ?? timedId('job', nowMs);
      if ((await change.find(id)) !== undefined) return 'taken';
      const { count } = await trx
        .selectFrom('jobs')
        .select(({ fn }) => fn.countAll<number>().as('count'))
        .where('state', '=', 'queued')
        .executeTakeFirstOrThrow();
      if (count >= this.options.jobsMax) return 'full';

      const queued = await change.insert({
        id,
        display_name: newJob.displayName,
        labels: JSON.stringify(newJob.labels),
        spec: JSON.stringify(newJob.spec),
        state: 'queued',
        state_reason: 'Waits for a free slot',
        failure: null,
        progress: JSON.stringify(newProgress(newJob)),
        attempt: 0,
        attempts_without_progress: 0,
        not_before_ms: 0,
        stop_request: null,
        last_sequence: 0,
        version: 1,
        priority: newJob.spec.priority,
        create_time_ms: nowMs,
        update_time_ms: nowMs,
        start_time_ms: null,
        end_time_ms: null,
        execution: null,
        origin: newJob.origin === null ? null : JSON.stringify(newJob.origin),
      });
      const row = await change.append(
        queued,
        0,
        newJob.warnings.map((warning) => ({ timeMs: nowMs, body: { kind: 'warning', ...warning } })),
      );
      if (newJob.requestId !== null) {
        await trx
          .insertInto('requests')
          .values({
            request_id: newJob.requestId,
            digest: newJob.requestDigest,
            job_id: id,
            create_time_ms: nowMs,
          })
          .execute();
      }
      return { job: toJob(row, await positionOf(change, id)), isRepeated: false };
    });
  }

  /**
   * Takes the first job that may start: it is `starting` with a new attempt, durably, when this resolves. With nothing to
   * take it says when the first job that waits after a crash may start, or null when the queue is empty.
   */
  async claimNext(): Promise<{ job: Job } | { notBeforeMs: number | null }> {
    return await this.journal.change(async (change) => {
      const row = await change.trx
        .selectFrom('jobs')
        .selectAll()
        .where('state', '=', 'queued')
        .where('not_before_ms', '<=', change.nowMs)
        .orderBy('priority', 'desc')
        .orderBy('create_time_ms')
        .orderBy('id')
        .limit(1)
        .executeTakeFirst();
      if (row === undefined) {
        const { first } = await change.trx
          .selectFrom('jobs')
          .select(({ fn }) => fn.min<number | null>('not_before_ms').as('first'))
          .where('state', '=', 'queued')
          .executeTakeFirstOrThrow();
        return { notBeforeMs: first };
      }
      // Safe as two statements: the transaction holds the only connection of the only process that has the file.
      const claimed = await change.moveTo(row, 'starting', 'A trainer is being started', {
        attempt: row.attempt + 1,
        start_time_ms: row.start_time_ms ?? change.nowMs,
      });
      return { job: toJob(claimed) };
    });
  }
}

async function repeatedJob(
  change: JobChange,
  requestId: string,
  requestDigest: string,
): Promise<Job | 'conflict' | undefined> {
  const first = await change.trx
    .selectFrom('requests')
    .selectAll()
    .where('request_id', '=', requestId)
    .executeTakeFirst();
  if (first === undefined) return undefined;
  if (first.digest !== requestDigest) return 'conflict';
  const row = await change.find(first.job_id);
  // Requests are deleted with their job.
  if (row === undefined) throw new Error(`Request ${requestId} names job ${first.job_id}, which is missing`);
  return toJob(row, await positionOf(change, row.id));
}

/** What a checkpoint has behind it counts from the start. */
function newProgress({ spec, origin }: NewJob): JobProgress {
  const schedule = new Schedule(spec);
  const step = origin?.step ?? 0;
  return {
    step,
    stepCount: schedule.stepCount,
    phase: null,
    restartCount: schedule.restartSteps().filter((restartStep) => restartStep <= step).length,
    trainedTokens: step * spec.batch.sequenceCount * spec.batch.sequenceLength,
    loss: null,
    evaluationLoss: null,
    tokensPerSecond: null,
    remainingSeconds: null,
    checkpointStep: origin === null ? null : step,
  };
}

async function positionOf(change: JobChange, jobId: string): Promise<number> {
  const row = await change.find(jobId);
  if (row?.state !== 'queued') return 0;
  const { count } = await change.trx
    .selectFrom('jobs')
    .select(({ fn }) => fn.countAll<number>().as('count'))
    .where('state', '=', 'queued')
    .where(
      sql<boolean>`(-priority, create_time_ms, id) <= (${-row.priority}, ${row.create_time_ms}, ${jobId})`,
    )
    .executeTakeFirstOrThrow();
  return count;
}
