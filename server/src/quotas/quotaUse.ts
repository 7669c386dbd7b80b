import { sql } from 'kysely';
import type { Database } from '../store/database.js';

/** Jobs of a tenant that have a trainer. */
export async function runningJobsOf(db: Database, tenant: string): Promise<number> {
  return await countJobs(db, tenant, ['starting', 'running']);
}

export async function queuedJobsOf(db: Database, tenant: string): Promise<number> {
  return await countJobs(db, tenant, ['queued']);
}

/** Hours for which processes of a tenant used a device in the last `windowDays`. */
export async function deviceHoursOf(
  db: Database,
  tenant: string,
  windowDays: number,
  nowMs: number,
): Promise<number> {
  const sinceMs = Math.round(nowMs - windowDays * 86_400_000);
  const { ms } = await db
    .selectFrom('attempts')
    .select(
      sql<number | null>`sum(processes * (coalesce(end_time_ms, ${nowMs})
        - case when start_time_ms < ${sinceMs} then ${sinceMs} else start_time_ms end))`.as('ms'),
    )
    .where('tenant', '=', tenant)
    .where(({ eb, or }) => or([eb('end_time_ms', 'is', null), eb('end_time_ms', '>', sinceMs)]))
    .executeTakeFirstOrThrow();
  return Number(ms ?? 0) / 3_600_000;
}

/**
 * When the tenant's device hours in the window fall below the limit, if nothing more runs; null while something runs. The oldest hours
 * leave the window first.
 */
export async function deviceHoursFreeMs(
  db: Database,
  tenant: string,
  { deviceHours, windowDays }: { deviceHours: number; windowDays: number },
  nowMs: number,
): Promise<number | null> {
  const windowMs = windowDays * 86_400_000;
  const sinceMs = Math.round(nowMs - windowMs);
  const rows = await db
    .selectFrom('attempts')
    .select(['start_time_ms', 'end_time_ms', 'processes'])
    .where('tenant', '=', tenant)
    .where(({ eb, or }) => or([eb('end_time_ms', 'is', null), eb('end_time_ms', '>', sinceMs)]))
    .orderBy('start_time_ms')
    .execute();
  if (deviceHours <= 0 || rows.some(({ end_time_ms }) => end_time_ms === null)) return null;
  const parts = rows.map((row) => ({
    fromMs: Math.max(row.start_time_ms, sinceMs),
    untilMs: row.end_time_ms!,
    processes: row.processes,
  }));
  const usedMs = parts.reduce(
    (sum, { fromMs, untilMs, processes }) => sum + (untilMs - fromMs) * processes,
    0,
  );
  let surplusMs = usedMs - deviceHours * 3_600_000;
  // Attempts that ran in parallel also leave the window in parallel, but are counted one after the other: so the result may be too late,
  // never too early.
  for (const { fromMs, untilMs, processes } of parts) {
    const partMs = (untilMs - fromMs) * processes;
    if (surplusMs < partMs) return Math.ceil(fromMs + Math.max(0, surplusMs) / processes + windowMs);
    surplusMs -= partMs;
  }
  return null;
}

/**
 * Bytes that belong to the rows of a tenant: checkpoints and artifacts of its jobs, files and tokens of its data sets, and weights; deleted
 * ones count until they are purged. Unfinished uploads count with their full size. Files that several checkpoints share count for each, so
 * that the result is the same on every server, whatever its disk shares.
 */
export async function bytesOf(db: Database, tenant: string): Promise<number> {
  const ofJobs = async (table: 'checkpoints' | 'artifacts'): Promise<number> => {
    const { bytes } = await db
      .selectFrom(table)
      .innerJoin('jobs', 'jobs.id', `${table}.job_id`)
      .select(({ fn }) => fn.sum<number | null>(`${table}.size_bytes`).as('bytes'))
      .where('jobs.tenant', '=', tenant)
      .executeTakeFirstOrThrow();
    return Number(bytes ?? 0);
  };
  const files = await db
    .selectFrom('dataset_files')
    .innerJoin('datasets', 'datasets.id', 'dataset_files.dataset_id')
    .select(({ fn }) => fn.sum<number | null>('dataset_files.size_bytes').as('bytes'))
    .where('datasets.tenant', '=', tenant)
    .where('dataset_files.server_path', 'is', null)
    .where('datasets.purged', '=', 0)
    .executeTakeFirstOrThrow();
  const prepared = await db
    .selectFrom('datasets')
    .select('prepared')
    .where('tenant', '=', tenant)
    .where('purged', '=', 0)
    .where('prepared', 'is not', null)
    .execute();
  const weights = await db
    .selectFrom('weights_files')
    .innerJoin('weights', 'weights.id', 'weights_files.weights_id')
    .select(({ fn }) => fn.sum<number | null>('weights_files.size_bytes').as('bytes'))
    .where('weights.tenant', '=', tenant)
    .executeTakeFirstOrThrow();
  return (
    (await ofJobs('checkpoints')) +
    (await ofJobs('artifacts')) +
    Number(files.bytes ?? 0) +
    prepared.reduce((sum, row) => sum + tokenBytesOf(row.prepared!), 0) +
    Number(weights.bytes ?? 0)
  );
}

/** Bytes of the tokens of a prepared data set: two each if the vocabulary is small enough, else four. */
function tokenBytesOf(prepared: string): number {
  const { tokenizer, train, heldOut } = JSON.parse(prepared) as {
    tokenizer: { vocabularySize: number };
    train: { tokenCount: number };
    heldOut: { tokenCount: number };
  };
  return (train.tokenCount + heldOut.tokenCount) * (tokenizer.vocabularySize <= 65_536 ? 2 : 4);
}

async function countJobs(
  db: Database,
  tenant: string,
  states: ('starting' | 'running' | 'queued')[],
): Promise<number> {
  const { count } = await db
    .selectFrom('jobs')
    .select(({ fn }) => fn.countAll<number>().as('count'))
    .where('tenant', '=', tenant)
    .where('state', 'in', states)
    .where('delete_time_ms', 'is', null)
    .executeTakeFirstOrThrow();
  return Number(count);
}
