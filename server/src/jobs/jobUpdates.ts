import type { RunChange, RunUpdate } from '@relora/engine/plan';
import type { Database } from '../store/database.js';

/** Stored for a step that is not known yet. */
const pending = -1;
/** SQLite takes at most 32,766 values in a statement, PostgreSQL 65,535. */
const rowsInStatement = 1000;

/** Updates of a job's run, in the order of their numbers. */
export async function updatesOf(db: Database, jobId: string): Promise<RunUpdate[]> {
  const rows = await db
    .selectFrom('job_updates')
    .select(['number', 'step', 'body'])
    .where('job_id', '=', jobId)
    .orderBy('number')
    .execute();
  return rows.map(({ number, step, body }) => ({
    number,
    step: step === pending ? null : step,
    change: JSON.parse(body) as RunChange,
  }));
}

export async function insertUpdates(
  db: Database,
  jobId: string,
  updates: readonly RunUpdate[],
  nowMs: number,
): Promise<void> {
  for (let first = 0; first < updates.length; first += rowsInStatement) {
    const rows = updates.slice(first, first + rowsInStatement).map(({ number, step, change }) => ({
      job_id: jobId,
      number,
      step: step ?? pending,
      body: JSON.stringify(change),
      create_time_ms: nowMs,
    }));
    await db.insertInto('job_updates').values(rows).execute();
  }
}

/** Records the step from which an update applies. A run that went back before that step applies it at the same step again. */
export async function updateApplied(
  db: Database,
  jobId: string,
  number: number,
  step: number,
): Promise<void> {
  await db
    .updateTable('job_updates')
    .set({ step })
    .where('job_id', '=', jobId)
    .where('number', '=', number)
    .execute();
}

/** How many checkpoints a job keeps once an update applies. */
export function keepCountAfter(before: number, { change }: RunUpdate): number {
  return change.checkpoint?.keepCount ?? before;
}
