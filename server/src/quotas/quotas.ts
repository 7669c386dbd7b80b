import type { Transaction } from 'kysely';
import type { Logger } from 'pino';
import { ServiceError } from '../errors.js';
import type { Schema } from '../store/schema.js';
import { WatchedFile } from '../watchedFile.js';
import { noQuotas, readQuotaFile, type Quota, type QuotaTable } from './quotaFile.js';
import { bytesOf, deviceHoursOf, queuedJobsOf, runningJobsOf } from './quotaUse.js';

type Trx = Transaction<Schema>;

/** Tenants of which no job starts now. */
export interface ClosedTenants {
  tenants: readonly string[];
  /** Those that have used up their device hours: the end of a job does not change that. */
  usedUp: readonly string[];
  /** When to check again because time alone may change it; null if another job has to end. */
  lookAgainMs: number | null;
}

/** How soon a waiting job notices that its tenant's window of device hours has moved. */
const lookAgainMs = 30_000;

/** The limits of tenants, from a file that is read again whenever it changes. Without a file there are no limits. */
export class Quotas {
  private readonly listeners = new Set<() => void>();
  private file: WatchedFile | undefined;

  constructor(private table: QuotaTable = noQuotas) {}

  /** Throws QuotaFileInvalid. Later, an unusable file changes nothing and is logged. */
  static async open(path: string, log: Logger): Promise<Quotas> {
    const quotas = new Quotas();
    if (path === '') return quotas;
    const read = async (): Promise<void> => {
      quotas.table = await readQuotaFile(path);
      log.info({ quotaFile: path, tenants: quotas.table.tenants.size }, 'Quotas were read');
      for (const listener of quotas.listeners) listener();
    };
    quotas.file = await WatchedFile.open(path, read, (error) =>
      log.error({ err: error }, 'The file of quotas cannot be used; the previous quotas stay in force'),
    );
    return quotas;
  }

  close(): void {
    this.file?.close();
  }

  of(tenant: string): Quota {
    return this.table.tenants.get(tenant) ?? this.table.default;
  }

  /** Called when the limits have changed. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** Whether quotas may make any tenant's jobs wait, so that claims must take turns. */
  get mayClose(): boolean {
    return [this.table.default, ...this.table.tenants.values()].some(
      ({ runningJobs, deviceHours }) => runningJobs !== null || deviceHours !== null,
    );
  }

  /** Among the tenants that have jobs in the queue. */
  async closedTenants(trx: Trx, nowMs: number): Promise<ClosedTenants> {
    const tenants: string[] = [];
    const usedUp: string[] = [];
    const waiting = await trx
      .selectFrom('jobs')
      .select('tenant')
      .distinct()
      .where('state', '=', 'queued')
      .where('delete_time_ms', 'is', null)
      .execute();
    for (const { tenant } of waiting) {
      const { runningJobs, deviceHours, windowDays } = this.of(tenant);
      const isBusy = runningJobs !== null && (await runningJobsOf(trx, tenant)) >= runningJobs;
      const isUsedUp =
        !isBusy &&
        deviceHours !== null &&
        (await deviceHoursOf(trx, tenant, windowDays, nowMs)) >= deviceHours;
      if (isBusy || isUsedUp) tenants.push(tenant);
      if (isUsedUp) usedUp.push(tenant);
    }
    return { tenants, usedUp, lookAgainMs: usedUp.length > 0 ? nowMs + lookAgainMs : null };
  }

  /** Throws QUOTA_EXCEEDED if the tenant has as many jobs in the queue as it may. */
  async requireQueuePlace(trx: Trx, tenant: string): Promise<void> {
    const { queuedJobs: max } = this.of(tenant);
    if (max === null) return;
    await takeTurn(trx);
    const used = await queuedJobsOf(trx, tenant);
    if (used >= max) throw new ServiceError('QUOTA_EXCEEDED', { quota: 'queued_jobs', tenant, max, used });
  }

  /** Waits until no other transaction requests bytes. In a transaction that locks rows, call it before that. */
  async takeTurn(trx: Trx, tenant: string): Promise<void> {
    if (this.of(tenant).bytes !== null) await takeTurn(trx);
  }

  /** Throws QUOTA_EXCEEDED if the tenant may not have this many bytes more; 0 checks whether it may have any more. */
  async requireBytes(trx: Trx, tenant: string, bytes: number): Promise<void> {
    const { bytes: max } = this.of(tenant);
    if (max === null) return;
    await takeTurn(trx);
    const used = await bytesOf(trx, tenant);
    if (used + bytes > max || used >= max)
      throw new ServiceError('QUOTA_EXCEEDED', { quota: 'bytes', tenant, max, used, asked: bytes });
  }
}

/** One at a time: two transactions that count at the same time would both take what is left. */
async function takeTurn(trx: Trx): Promise<void> {
  await trx.selectFrom('store_info').select('key').where('key', '=', 'incarnation').forUpdate().execute();
}
