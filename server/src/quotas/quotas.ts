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
  /** Those of them that have used their device hours: the end of a job opens none. */
  usedUp: readonly string[];
  /** When to look again, where time alone may open one of them; null where another job has to end. */
  lookAgainMs: number | null;
}

/** A window of device hours moves on by itself: how soon a job that waits for that is noticed. */
const lookAgainMs = 30_000;

/** What tenants may have: as a file says, read again whenever it changes. Without one there is no limit. */
export class Quotas {
  private readonly listeners = new Set<() => void>();
  private file: WatchedFile | undefined;

  constructor(private table: QuotaTable = noQuotas) {}

  /** Throws QuotaFileInvalid. A later file that cannot be used changes nothing, and the log says so. */
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

  /** Called when what the file says has changed. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** Whether any tenant's jobs may have to wait for a quota, so that claims must take turns. */
  get mayClose(): boolean {
    return [this.table.default, ...this.table.tenants.values()].some(
      ({ runningJobs, deviceHours }) => runningJobs !== null || deviceHours !== null,
    );
  }

  /** Of the tenants that have jobs in the queue. */
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

  /** Throws QUOTA_EXCEEDED where the tenant has as many jobs in the queue as it may. */
  async requireQueuePlace(trx: Trx, tenant: string): Promise<void> {
    const { queuedJobs: max } = this.of(tenant);
    if (max === null) return;
    await takeTurn(trx);
    const used = await queuedJobsOf(trx, tenant);
    if (used >= max) throw new ServiceError('QUOTA_EXCEEDED', { quota: 'queued_jobs', tenant, max, used });
  }

  /** Waits until nobody else asks for bytes; first of all in a transaction that locks rows before it does. */
  async takeTurn(trx: Trx, tenant: string): Promise<void> {
    if (this.of(tenant).bytes !== null) await takeTurn(trx);
  }

  /** Throws QUOTA_EXCEEDED where the tenant has no room for so many bytes more; 0 asks for any room at all. */
  async requireBytes(trx: Trx, tenant: string, bytes: number): Promise<void> {
    const { bytes: max } = this.of(tenant);
    if (max === null) return;
    await takeTurn(trx);
    const used = await bytesOf(trx, tenant);
    if (used + bytes > max || used >= max)
      throw new ServiceError('QUOTA_EXCEEDED', { quota: 'bytes', tenant, max, used, asked: bytes });
  }
}

/** One at a time, or two that count together would both take what is left. */
async function takeTurn(trx: Trx): Promise<void> {
  await trx.selectFrom('store_info').select('key').where('key', '=', 'incarnation').forUpdate().execute();
}
