import type { DeviceChoice, StopReason } from '@relora/engine/plan';
import type { SelectQueryBuilder, Transaction } from 'kysely';
import type { Leases } from '../store/leases.js';
import { hasRoom, mayContinueOn, type FreeDevices } from './jobDevices.js';
import type { JobRow, JobRowChange, NewJobRow, Schema } from '../store/schema.js';
import {
  hasTrainer,
  isTerminal,
  transitions,
  type JobEvent,
  type JobEventBody,
  type JobFailure,
  type JobProgress,
  type JobState,
} from './job.js';
import { toEventRow } from './jobRow.js';
import { endAttempt, relabelAttempts } from '../usage/attemptUse.js';
import { runningOfOwner, withinLimits, type ClaimLimits } from './queueOrder.js';

/** Columns of a job that a change may set in addition to its state. */
export type JobPatch = Omit<
  JobRowChange,
  'id' | 'state' | 'state_reason' | 'last_sequence' | 'version' | 'update_time_ms'
>;

export interface NewEvent {
  timeMs: number;
  body: JobEventBody;
}

/**
 * One transaction that changes jobs. Every event takes its sequence number from the job's row in the same transaction that makes the
 * change, so numbers have no gaps and no reader sees a later number before an earlier one.
 */
export class JobChange {
  /** What is announced after the commit, by job id. */
  readonly touched = new Map<string, { row: JobRow; events: JobEvent[] }>();

  constructor(
    readonly trx: Transaction<Schema>,
    readonly nowMs: number,
  ) {}

  /** The row, locked until the end of this transaction. */
  async find(jobId: string): Promise<JobRow | undefined> {
    return await this.trx
      .selectFrom('jobs')
      .selectAll()
      .where('id', '=', jobId)
      .forUpdate()
      .executeTakeFirst();
  }

  /** The same for a job that no server works on, or whose server was silent for too long. */
  async findFree(jobId: string, leases: Leases): Promise<JobRow | undefined> {
    return await this.trx
      .selectFrom('jobs')
      .selectAll()
      .where('id', '=', jobId)
      .where(leases.isFree)
      .forUpdate()
      .executeTakeFirst();
  }

  async insert(newRow: NewJobRow, labels: Record<string, string>): Promise<JobRow> {
    const row = await this.trx.insertInto('jobs').values(newRow).returningAll().executeTakeFirstOrThrow();
    await this.setLabels(row, labels);
    return await this.append(row, 0, [
      {
        timeMs: this.nowMs,
        body: { kind: 'state', from: null, to: row.state, reason: row.state_reason, failure: null },
      },
    ]);
  }

  /** Stores a job whose journal is already stored. */
  async adopt(newRow: NewJobRow, labels: Record<string, string>): Promise<JobRow> {
    const row = await this.trx.insertInto('jobs').values(newRow).returningAll().executeTakeFirstOrThrow();
    await this.setLabels(row, labels);
    this.touched.set(row.id, { row, events: [] });
    return row;
  }

  /**
   * Waits until no other server is claiming, if owners or tenants have limits: two servers that count at the same time would both take the
   * last place, and a locked first row would make the other server take a later job of the same owner.
   */
  async takeTurn(): Promise<void> {
    await this.trx
      .selectFrom('store_info')
      .select('key')
      .where('key', '=', 'incarnation')
      .forUpdate()
      .execute();
  }

  /**
   * Takes the first job that may start on one of the devices, in one statement, so that several servers on PostgreSQL take different ones
   * at the same time. The job is then `starting`, with a new attempt and a lease.
   */
  async claim(
    reason: string,
    devices: FreeDevices,
    leases: Leases,
    limits: ClaimLimits,
  ): Promise<JobRow | undefined> {
    const claimed = await this.claiming(reason, leases)
      .where('id', '=', (query) =>
        this.inOrder(query.selectFrom('jobs').select('id'), devices, limits)
          .limit(1)
          .forUpdate()
          .skipLocked(),
      )
      // If the very first job waits for several places, no job behind it takes them.
      .where(hasRoom(devices.free, devices, 'free'))
      .returningAll()
      .executeTakeFirst();
    return claimed && (await this.appendClaim(claimed, reason));
  }

  /** The same for a queued job that `first` returned. */
  async claimRow({ id }: JobRow, reason: string, leases: Leases): Promise<JobRow> {
    const claimed = await this.claiming(reason, leases)
      .where('id', '=', id)
      .returningAll()
      .executeTakeFirstOrThrow();
    return await this.appendClaim(claimed, reason);
  }

  private claiming(reason: string, leases: Leases) {
    return this.trx.updateTable('jobs').set((eb) => ({
      state: 'starting' as const,
      state_reason: reason,
      failure: null,
      stop_request: null,
      ...leases.grant(),
      attempt: eb('attempt', '+', 1),
      message_number: 0,
      version: eb('version', '+', 1),
      start_time_ms: eb.fn.coalesce('start_time_ms', eb.val(this.nowMs)),
    }));
  }

  private async appendClaim(claimed: JobRow, reason: string): Promise<JobRow> {
    const event = { from: 'queued' as const, to: 'starting' as const, reason, failure: null };
    return await this.append(claimed, claimed.attempt, [
      { timeMs: this.nowMs, body: { kind: 'state', ...event } },
    ]);
  }

  /**
   * The first job that may start, whether or not there are free places for all of its processes.
   * @param additional devices whose jobs count in addition to those of the free devices
   */
  async first(
    devices: FreeDevices,
    limits: ClaimLimits,
    additional: readonly DeviceChoice[] = [],
  ): Promise<JobRow | undefined> {
    const jobs = this.trx.selectFrom('jobs').selectAll();
    return await this.inOrder(jobs, devices, limits, additional)
      .limit(1)
      .forUpdate()
      .skipLocked()
      .executeTakeFirst();
  }

  /** Queued jobs that may start on one of the devices, if all of its places were free, in the order of the queue. */
  private inOrder<Columns>(
    query: SelectQueryBuilder<Schema, 'jobs', Columns>,
    { free, pins, places }: FreeDevices,
    limits: ClaimLimits,
    additional: readonly DeviceChoice[] = [],
  ): SelectQueryBuilder<Schema, 'jobs', Columns> {
    return query
      .where('state', '=', 'queued')
      .where('delete_time_ms', 'is', null)
      .where('not_before_ms', '<=', this.nowMs)
      .where(hasRoom([...free, ...additional], { places }, 'count'))
      .where(mayContinueOn(pins))
      .where(withinLimits(limits))
      .orderBy('priority', 'desc')
      .orderBy(runningOfOwner)
      .orderBy('create_time_ms')
      .orderBy('id');
  }

  /** Changes the state, writes the event and raises the version. A change that the table does not allow is a fault of ours. */
  async moveTo(
    row: JobRow,
    to: JobState,
    reason: string,
    patch: JobPatch = {},
    failure: JobFailure | null = null,
  ): Promise<JobRow> {
    if (!transitions[row.state].includes(to))
      throw new Error(`Job ${row.id} cannot go from ${row.state} to ${to}`);
    if (hasTrainer(row.state) && !hasTrainer(to)) await endAttempt(this.trx, row, this.nowMs);
    const attempt = patch.attempt ?? (hasTrainer(row.state) ? row.attempt : 0);
    return await this.append(
      row,
      attempt,
      [
        {
          timeMs: this.nowMs,
          body: { kind: 'state', from: row.state, to, reason, failure, ...stopOf(row, to) },
        },
      ],
      {
        stop_request: null,
        ...(hasTrainer(to) ? {} : { lease_server: null, lease_until_ms: null }),
        ...patch,
        state: to,
        state_reason: reason.replaceAll('\0', ''), // PostgreSQL's text has no NUL
        failure: failure === null ? null : JSON.stringify(failure),
        version: row.version + 1,
        ...(isTerminal(to) ? { end_time_ms: this.nowMs } : {}),
      },
    );
  }

  /** The rows by which jobs are found by label; the job's own row has its labels, too. */
  async setLabels(row: JobRow, labels: Record<string, string>): Promise<void> {
    await this.trx.deleteFrom('job_labels').where('job_id', '=', row.id).execute();
    const pairs = Object.entries(labels).map(([key, value]) => ({ job_id: row.id, key, value }));
    if (pairs.length > 0) await this.trx.insertInto('job_labels').values(pairs).execute();
    await relabelAttempts(this.trx, row, labels);
  }

  /** Changes something of a job that is not an event, such as a stop request. */
  async update(row: JobRow, patch: JobPatch): Promise<JobRow> {
    return await this.append(row, row.attempt, [], { ...patch, version: row.version + 1 });
  }

  /** Appends events and sets the given columns; returns the updated row. */
  async append(
    row: JobRow,
    attempt: number,
    events: readonly NewEvent[],
    patch: JobRowChange = {},
  ): Promise<JobRow> {
    const changed = {
      ...patch,
      message_number: row.message_number,
      last_sequence: row.last_sequence + events.length,
      update_time_ms: this.nowMs,
    };
    const appended = events.map(({ timeMs, body }, index): JobEvent => {
      const sequence = row.last_sequence + index + 1;
      const final = body.kind === 'state' && isTerminal(body.to);
      return { sequence, firstSequence: sequence, timeMs, attempt, final, body };
    });
    const { id } = row;
    await this.trx.updateTable('jobs').set(changed).where('id', '=', id).execute();
    if (appended.length > 0) {
      await this.trx
        .insertInto('events')
        .values(appended.map((event) => toEventRow(id, event)))
        .execute();
    }
    const next = { ...row, ...changed } as JobRow;
    const before = this.touched.get(id)?.events ?? [];
    this.touched.set(id, { row: next, events: [...before, ...appended] });
    return next;
  }
}

/** The last state of a run says whether it ended early. */
function stopOf({ progress }: JobRow, to: JobState): { stopReason?: StopReason } {
  if (to !== 'succeeded') return {};
  const { stop } = JSON.parse(progress) as JobProgress;
  return stop === undefined ? {} : { stopReason: stop.reason };
}
