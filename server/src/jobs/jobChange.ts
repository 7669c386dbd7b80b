import type { Transaction } from 'kysely';
import type { JobRow, Schema } from '../store/schema.js';
import {
  isTerminal,
  transitions,
  type JobEvent,
  type JobEventBody,
  type JobFailure,
  type JobState,
} from './job.js';
import { writeBody } from './jobRow.js';

/** Columns of a job that a change may set beside its state. */
export type JobPatch = Partial<
  Omit<JobRow, 'id' | 'state' | 'state_reason' | 'last_sequence' | 'version' | 'update_time_ms'>
>;

export interface NewEvent {
  timeMs: number;
  body: JobEventBody;
}

/**
 * One transaction that changes jobs. Every event takes its sequence number from the job's row in the transaction that
 * makes the change, so numbers have no gaps and no reader sees a later number before an earlier one.
 */
export class JobChange {
  /** What is announced after the commit, by job id. */
  readonly touched = new Map<string, { row: JobRow; events: JobEvent[] }>();

  constructor(
    readonly trx: Transaction<Schema>,
    readonly nowMs: number,
  ) {}

  async find(jobId: string): Promise<JobRow | undefined> {
    return await this.trx.selectFrom('jobs').selectAll().where('id', '=', jobId).executeTakeFirst();
  }

  async insert(row: JobRow): Promise<JobRow> {
    await this.trx.insertInto('jobs').values(row).execute();
    return await this.append({ ...row, last_sequence: 0 }, 0, [
      {
        timeMs: this.nowMs,
        body: { kind: 'state', from: null, to: row.state, reason: row.state_reason, failure: null },
      },
    ]);
  }

  /** Changes the state, tells of it in the journal and raises the version. A change that the table does not allow is a fault of ours. */
  async moveTo(
    row: JobRow,
    to: JobState,
    reason: string,
    patch: JobPatch = {},
    failure: JobFailure | null = null,
  ): Promise<JobRow> {
    if (!transitions[row.state].includes(to))
      throw new Error(`Job ${row.id} cannot go from ${row.state} to ${to}`);
    const attempt = patch.attempt ?? (row.state === 'starting' || row.state === 'running' ? row.attempt : 0);
    return await this.append(
      row,
      attempt,
      [{ timeMs: this.nowMs, body: { kind: 'state', from: row.state, to, reason, failure } }],
      {
        stop_request: null,
        ...patch,
        state: to,
        state_reason: reason,
        failure: failure === null ? null : JSON.stringify(failure),
        version: row.version + 1,
        ...(isTerminal(to) ? { end_time_ms: this.nowMs } : {}),
      },
    );
  }

  /** Changes something of a job that is no event, such as a wish. */
  async update(row: JobRow, patch: JobPatch): Promise<JobRow> {
    return await this.append(row, row.attempt, [], { ...patch, version: row.version + 1 });
  }

  /** Appends events and sets columns; returns the row as it now stands. */
  async append(
    row: JobRow,
    attempt: number,
    events: NewEvent[],
    patch: Partial<JobRow> = {},
  ): Promise<JobRow> {
    const next: JobRow = {
      ...row,
      ...patch,
      last_sequence: row.last_sequence + events.length,
      update_time_ms: this.nowMs,
    };
    const appended = events.map(({ timeMs, body }, index): JobEvent => ({
      sequence: row.last_sequence + index + 1,
      timeMs,
      attempt,
      final: body.kind === 'state' && isTerminal(body.to),
      body,
    }));
    const { id, ...columns } = next;
    await this.trx.updateTable('jobs').set(columns).where('id', '=', id).execute();
    if (appended.length > 0) {
      await this.trx
        .insertInto('events')
        .values(
          appended.map((event) => ({
            job_id: id,
            sequence: event.sequence,
            time_ms: event.timeMs,
            attempt,
            final: event.final ? 1 : 0,
            body: writeBody(event.body),
          })),
        )
        .execute();
    }
    const before = this.touched.get(id)?.events ?? [];
    this.touched.set(id, { row: next, events: [...before, ...appended] });
    return next;
  }
}
