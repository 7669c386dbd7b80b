import { sql, type Transaction } from 'kysely';
import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';
import type { Schema } from '../store/schema.js';
import { isTerminal, terminalStates, type JobState } from './job.js';

/** How far a reader has come in the journal of a job, and what it keeps in addition. */
export interface Position {
  sequence: number;
  state: string;
}

/** How much the clocks of a server that creates a job and one that creates a reader may differ: see Leases.requireClock. */
const marginMs = 300_000;

/**
 * Rows of those who read journals to their end: webhooks and trackers. Each has a lease, so that one server at a time reads for it, and a
 * position in each job, which is stored together with what the reader made of the events.
 */
export class JournalReaders {
  constructor(
    private readonly db: Database,
    private readonly leases: Leases,
  ) {}

  /** Creates a reader if it does not exist. It reads unfinished jobs `fromStart` or from now on, and ignores ended ones. */
  async register(
    id: string,
    { tenant, fromStart }: { tenant: string | null; fromStart: boolean },
    trx?: Transaction<Schema>,
  ): Promise<void> {
    if (trx === undefined)
      return await this.db
        .transaction()
        .execute(async (own) => await this.register(id, { tenant, fromStart }, own));
    const sinceMs = this.leases.now() - marginMs;
    const made = await trx
      .insertInto('journal_readers')
      .values({ id, tenant, since_ms: sinceMs, lease_server: null, lease_until_ms: null })
      .onConflict((conflict) => conflict.doNothing())
      .returning('id')
      .executeTakeFirst();
    if (made === undefined) return;
    // Ended jobs within the margin get a position, so that their past is not taken for new.
    await trx
      .insertInto('journal_positions')
      .columns(['reader', 'job_id', 'sequence', 'state'])
      .expression(({ selectFrom }) => {
        const jobs = selectFrom('jobs')
          .where(({ eb, or }) =>
            or([eb('state', 'not in', terminalStates), eb('create_time_ms', '>=', sinceMs)]),
          )
          .select(({ eb, ref }) => [
            sql.lit(id).as('reader'),
            'jobs.id as job_id',
            fromStart
              ? eb
                  .case()
                  .when('state', 'in', terminalStates)
                  .then(ref('last_sequence'))
                  .else(sql.lit(0))
                  .end()
                  .as('sequence')
              : 'last_sequence as sequence',
            sql.lit('').as('state'),
          ]);
        return tenant === null ? jobs : jobs.where('tenant', '=', tenant);
      })
      .execute();
  }

  /** Takes the reader for this server. Returns the fencing epoch; undefined if another server has the reader or it is gone. */
  async claim(id: string): Promise<number | undefined> {
    const row = await this.db
      .updateTable('journal_readers')
      .set((eb) => ({ ...this.leases.grant(), epoch: eb('epoch', '+', 1) }))
      .where('id', '=', id)
      .where(this.leases.isFree)
      .returning('epoch')
      .executeTakeFirst();
    return row?.epoch;
  }

  /** Lets other servers take it. */
  async release(id: string, epoch: number): Promise<void> {
    await this.db
      .updateTable('journal_readers')
      .set({ lease_server: null, lease_until_ms: null })
      .where('id', '=', id)
      .where('epoch', '=', epoch)
      .execute();
  }

  /** Jobs with events that the reader has not read. */
  async backlog(id: string): Promise<string[]> {
    const rows = await this.db
      .selectFrom('journal_readers')
      .innerJoin('jobs', (join) =>
        join.on(({ eb, or, ref }) =>
          or([
            eb('journal_readers.tenant', 'is', null),
            eb('journal_readers.tenant', '=', ref('jobs.tenant')),
          ]),
        ),
      )
      .leftJoin('journal_positions', (join) =>
        join.onRef('journal_positions.job_id', '=', 'jobs.id').on('journal_positions.reader', '=', id),
      )
      .select('jobs.id')
      .where('journal_readers.id', '=', id)
      .where(({ eb, or, and, ref }) =>
        or([
          eb('journal_positions.sequence', '<', ref('jobs.last_sequence')),
          and([
            eb('journal_positions.sequence', 'is', null),
            eb('jobs.create_time_ms', '>=', ref('journal_readers.since_ms')),
          ]),
        ]),
      )
      .orderBy('jobs.create_time_ms')
      .execute();
    return rows.map((row) => row.id);
  }

  /** Undefined for a job that the reader ignores. */
  async position(id: string, job: { id: string; createTimeMs: number }): Promise<Position | undefined> {
    const row = await this.db
      .selectFrom('journal_readers')
      .leftJoin('journal_positions', (join) =>
        join
          .onRef('journal_positions.reader', '=', 'journal_readers.id')
          .on('journal_positions.job_id', '=', job.id),
      )
      .select(['since_ms', 'journal_positions.sequence', 'journal_positions.state'])
      .where('journal_readers.id', '=', id)
      .executeTakeFirst();
    if (row === undefined) return undefined;
    if (row.sequence !== null) return { sequence: row.sequence, state: row.state ?? '' };
    return job.createTimeMs >= row.since_ms ? { sequence: 0, state: '' } : undefined;
  }

  /** Stores a position with what the reader made of the events before it; false if another server has taken the reader. */
  async advance(
    id: string,
    epoch: number,
    jobId: string,
    position: Position,
    work: (trx: Transaction<Schema>) => Promise<void> = async () => {},
  ): Promise<boolean> {
    return await this.db.transaction().execute(async (trx) => {
      const held = await trx
        .selectFrom('journal_readers')
        .select('id')
        .where('id', '=', id)
        .where('epoch', '=', epoch)
        .forUpdate()
        .executeTakeFirst();
      const job =
        held && (await trx.selectFrom('jobs').select('id').where('id', '=', jobId).executeTakeFirst());
      if (job === undefined) return held !== undefined;
      await work(trx);
      await trx
        .insertInto('journal_positions')
        .values({ reader: id, job_id: jobId, ...position })
        .onConflict((conflict) => conflict.columns(['reader', 'job_id']).doUpdateSet(position))
        .execute();
      return true;
    });
  }
}

/**
 * Gives the existing readers their positions in a job that is imported with its journal: it is new here, whenever it was created. As with a
 * job that is here when they are registered, webhooks get what comes, and trackers all of an unfinished job.
 */
export async function registerImported(
  trx: Transaction<Schema>,
  job: { id: string; tenant: string; state: JobState; lastSequence: number },
): Promise<void> {
  const readers = await trx
    .selectFrom('journal_readers')
    .select(['id', 'tenant'])
    .where(({ eb, or }) => or([eb('tenant', 'is', null), eb('tenant', '=', job.tenant)]))
    .forKeyShare() // none is deleted meanwhile
    .execute();
  if (readers.length === 0) return;
  const rows = readers.map(({ id, tenant }) => ({
    reader: id,
    job_id: job.id,
    // Only trackers read the jobs of all tenants.
    sequence: tenant === null && !isTerminal(job.state) ? 0 : job.lastSequence,
    state: '',
  }));
  await trx.insertInto('journal_positions').values(rows).execute();
}
