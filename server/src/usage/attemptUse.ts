import type { Selectable, Transaction } from 'kysely';
import type { AttemptRow, JobRow, Schema } from '../store/schema.js';

type Trx = Transaction<Schema>;

/** What steps used: when, how long, and how many tokens. */
export interface StepUse {
  timeMs: number;
  seconds: number;
  tokens: number;
}

/** Records that an attempt at a job begins. What it uses is summed until it ends, and outlives the job. */
export async function beginAttempt(
  trx: Trx,
  row: Pick<JobRow, 'id' | 'create_time_ms' | 'attempt' | 'tenant' | 'labels'>,
  { device, processes }: { device: string; processes: number },
  nowMs: number,
): Promise<void> {
  const { tenant, labels } = row;
  await trx
    .insertInto('attempts')
    .values({
      ...keyOf(row),
      ...{ tenant, labels, device, processes, start_time_ms: nowMs, end_time_ms: null },
    })
    .execute();
}

/** Adds what its steps used. This also records how long it held its device, in case nobody sees its end. */
export async function addSteps(
  trx: Trx,
  row: AttemptOf,
  steps: readonly StepUse[],
  nowMs: number,
): Promise<void> {
  const attempt = await ofAttempt(trx, row)
    .select(['start_time_ms', 'processes'])
    .where('end_time_ms', 'is', null)
    .executeTakeFirst();
  if (attempt !== undefined) await addToMonths(trx, row, attempt, nowMs, steps);
}

/** An attempt that has already ended stays as it is. */
export async function endAttempt(trx: Trx, row: AttemptOf, endTimeMs: number): Promise<void> {
  const { job_id, job_create_time_ms, attempt } = keyOf(row);
  const ended = await trx
    .updateTable('attempts')
    .set({ end_time_ms: endTimeMs })
    .where('job_id', '=', job_id)
    .where('job_create_time_ms', '=', job_create_time_ms)
    .where('attempt', '=', attempt)
    .where('end_time_ms', 'is', null)
    .returning(['start_time_ms', 'processes'])
    .executeTakeFirst();
  if (ended !== undefined) await addToMonths(trx, row, ended, endTimeMs, []);
}

/** Use is reported by the latest labels of a job. */
export async function relabelAttempts(
  trx: Trx,
  row: Pick<JobRow, 'id' | 'create_time_ms'>,
  labels: Record<string, string>,
): Promise<void> {
  await trx
    .updateTable('attempts')
    .set({ labels: JSON.stringify(labels) })
    .where('job_id', '=', row.id)
    .where('job_create_time_ms', '=', row.create_time_ms)
    .execute();
}

type AttemptOf = Pick<JobRow, 'id' | 'create_time_ms' | 'attempt'>;

function keyOf({ id, create_time_ms, attempt }: AttemptOf) {
  return { job_id: id, job_create_time_ms: create_time_ms, attempt };
}

function ofAttempt(trx: Trx, row: AttemptOf) {
  const { job_id, job_create_time_ms, attempt } = keyOf(row);
  return trx
    .selectFrom('attempts')
    .where('job_id', '=', job_id)
    .where('job_create_time_ms', '=', job_create_time_ms)
    .where('attempt', '=', attempt);
}

/** A run of many months has a row for each; all but the last are complete. */
async function addToMonths(
  trx: Trx,
  row: AttemptOf,
  { start_time_ms: startTimeMs, processes }: Pick<Selectable<AttemptRow>, 'start_time_ms' | 'processes'>,
  endTimeMs: number,
  steps: readonly StepUse[],
): Promise<void> {
  for (const { month, fromMs, untilMs } of monthsBetween(startTimeMs, endTimeMs)) {
    const ofMonth = steps.filter(({ timeMs }) => monthOf(clamp(timeMs, startTimeMs, endTimeMs)) === month);
    const sum = (of: (step: StepUse) => number): number =>
      ofMonth.reduce((total, step) => total + of(step), 0);
    await trx
      .insertInto('attempt_months')
      .values({
        ...keyOf(row),
        month,
        device_ms: (untilMs - fromMs) * processes,
        step_seconds: sum(({ seconds }) => seconds),
        tokens: sum(({ tokens }) => tokens),
      })
      .onConflict((conflict) =>
        conflict.columns(['job_id', 'job_create_time_ms', 'attempt', 'month']).doUpdateSet((eb) => ({
          device_ms: eb.ref('excluded.device_ms'),
          step_seconds: eb('attempt_months.step_seconds', '+', eb.ref('excluded.step_seconds')),
          tokens: eb('attempt_months.tokens', '+', eb.ref('excluded.tokens')),
        })),
      )
      .execute();
  }
}

/** For example 2026-11, in UTC. */
export function monthOf(timeMs: number): string {
  return new Date(timeMs).toISOString().slice(0, 7);
}

/** Divides a period by months. */
export function monthsBetween(
  startTimeMs: number,
  endTimeMs: number,
): { month: string; fromMs: number; untilMs: number }[] {
  const parts: { month: string; fromMs: number; untilMs: number }[] = [];
  for (let fromMs = startTimeMs; ;) {
    const date = new Date(fromMs);
    const nextMs = Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1);
    // Even if the clock was set back, no duration is negative.
    const untilMs = Math.max(fromMs, Math.min(nextMs, endTimeMs));
    parts.push({ month: monthOf(fromMs), fromMs, untilMs });
    if (nextMs > endTimeMs) return parts;
    fromMs = nextMs;
  }
}

function clamp(value: number, min: number, max: number): number {
  return Math.max(min, Math.min(max, value));
}
