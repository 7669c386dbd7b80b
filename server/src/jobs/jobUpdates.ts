import type { RunChange, RunUpdate } from '@relora/engine/plan';
import type { Database } from '../store/database.js';

/** Stands in the store for a step that is not known yet. */
const pending = -1;

/** Changes of a job's run, in the order of their numbers. */
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
  if (updates.length === 0) return;
  await db
    .insertInto('job_updates')
    .values(
      updates.map(({ number, step, change }) => ({
        job_id: jobId,
        number,
        step: step ?? pending,
        body: JSON.stringify(change),
        create_time_ms: nowMs,
      })),
    )
    .execute();
}

/** Notes from which step on an update holds. A run that went back behind it has it at the same step again. */
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
