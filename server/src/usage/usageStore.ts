import { sql } from 'kysely';
import type { Quota } from '../quotas/quotaFile.js';
import { bytesOf, deviceHoursOf, queuedJobsOf, runningJobsOf } from '../quotas/quotaUse.js';
import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';

export const usageDimensions = ['job', 'tenant', 'month'] as const;
export type UsageDimension = (typeof usageDimensions)[number];

export interface UsageQuestion {
  /** Null: all tenants. */
  tenant: string | null;
  by: readonly UsageDimension[];
  /** Null: not by label. */
  label: string | null;
  /** For example 2026-11; null: from the beginning. */
  firstMonth: string | null;
  lastMonth: string | null;
}

/** The total use of some jobs. Fields that it is not grouped by are null. */
export interface UsageRow {
  tenant: string | null;
  jobId: string | null;
  jobCreateTimeMs: number | null;
  month: string | null;
  /** Empty for jobs without the label. */
  labelValue: string;
  attemptCount: number;
  stepSeconds: number;
  tokens: number;
  deviceMs: number;
}

/** Sums the use of attempts in the store: only the rows of a page are read, unless it is grouped by a label. */
export class UsageStore {
  constructor(
    private readonly db: Database,
    private readonly leases: Pick<Leases, 'now'>,
  ) {}

  /** What a tenant currently uses of its quotas. */
  async held(
    tenant: string,
    windowDays: number,
  ): Promise<Record<Exclude<keyof Quota, 'windowDays'>, number>> {
    const { db } = this;
    return {
      runningJobs: await runningJobsOf(db, tenant),
      queuedJobs: await queuedJobsOf(db, tenant),
      bytes: await bytesOf(db, tenant),
      deviceHours: await deviceHoursOf(db, tenant, windowDays, this.leases.now()),
    };
  }

  /** Ordered by tenant, month, job and label. */
  async list(question: UsageQuestion, skip: number, rowsMax: number): Promise<UsageRow[]> {
    const { label } = question;
    if (label === null) return (await this.read(question, { skip, rowsMax })).map(({ row }) => row);
    const groups = new Map<string, UsageRow>();
    for (const { row, labels } of await this.read(question, null)) {
      const given = JSON.parse(labels) as Record<string, string>;
      const labelValue = Object.hasOwn(given, label) ? given[label]! : '';
      const key = JSON.stringify([row.tenant, row.month, row.jobId, row.jobCreateTimeMs, labelValue]);
      const before = groups.get(key);
      groups.set(key, before === undefined ? { ...row, labelValue } : joined(before, row));
    }
    const rows = [...groups.values()].sort((a, b) => compare(orderOf(a), orderOf(b)));
    return rows.slice(skip, skip + rowsMax);
  }

  private async read(
    { tenant, by, label, firstMonth, lastMonth }: UsageQuestion,
    page: { skip: number; rowsMax: number } | null,
  ): Promise<{ row: UsageRow; labels: string }[]> {
    let query = this.db
      .selectFrom('attempt_months as part')
      .innerJoin('attempts', (join) =>
        join
          .onRef('attempts.job_id', '=', 'part.job_id')
          .onRef('attempts.job_create_time_ms', '=', 'part.job_create_time_ms')
          .onRef('attempts.attempt', '=', 'part.attempt'),
      )
      .select(({ fn }) => [
        sql<number>`count(distinct part.job_id || ' ' || part.job_create_time_ms || ' ' || part.attempt)`.as(
          'attemptCount',
        ),
        fn.sum<number>('part.step_seconds').as('stepSeconds'),
        fn.sum<number>('part.tokens').as('tokens'),
        fn.sum<number>('part.device_ms').as('deviceMs'),
      ])
      .$castTo<Sums & Partial<Groups>>();
    if (tenant !== null) query = query.where('attempts.tenant', '=', tenant);
    if (firstMonth !== null) query = query.where('part.month', '>=', firstMonth);
    if (lastMonth !== null) query = query.where('part.month', '<=', lastMonth);
    // In the order of the rows.
    const columns = [
      ...(by.includes('tenant') ? (['attempts.tenant'] as const) : []),
      ...(by.includes('month') ? (['part.month'] as const) : []),
      ...(by.includes('job') ? (['attempts.job_id', 'attempts.job_create_time_ms'] as const) : []),
      ...(label !== null ? (['attempts.labels'] as const) : []),
    ];
    for (const column of columns) query = query.select(column).groupBy(column).orderBy(column);
    if (page !== null) query = query.limit(page.rowsMax).offset(page.skip);
    const rows = await query.execute();
    // A sum over nothing still returns a row.
    return rows
      .filter(({ attemptCount }) => Number(attemptCount) > 0)
      .map((row) => ({
        labels: row.labels ?? '{}',
        row: {
          tenant: row.tenant ?? null,
          jobId: row.job_id ?? null,
          jobCreateTimeMs: row.job_create_time_ms ?? null,
          month: row.month ?? null,
          labelValue: '',
          attemptCount: Number(row.attemptCount),
          stepSeconds: Number(row.stepSeconds),
          tokens: Number(row.tokens),
          deviceMs: Number(row.deviceMs),
        },
      }));
  }
}

interface Sums {
  attemptCount: number;
  stepSeconds: number;
  tokens: number;
  deviceMs: number;
}

interface Groups {
  tenant: string;
  month: string;
  job_id: string;
  job_create_time_ms: number;
  labels: string;
}

function joined(one: UsageRow, other: UsageRow): UsageRow {
  return {
    ...one,
    attemptCount: one.attemptCount + other.attemptCount,
    stepSeconds: one.stepSeconds + other.stepSeconds,
    tokens: one.tokens + other.tokens,
    deviceMs: one.deviceMs + other.deviceMs,
  };
}

function orderOf({ tenant, month, jobId, jobCreateTimeMs, labelValue }: UsageRow): string[] {
  return [tenant ?? '', month ?? '', jobId ?? '', String(jobCreateTimeMs ?? 0).padStart(16, '0'), labelValue];
}

function compare(one: readonly string[], other: readonly string[]): number {
  const index = one.findIndex((text, place) => text !== other[place]);
  return index < 0 ? 0 : one[index]! < other[index]! ? -1 : 1;
}
