import type { DeepPartial, GetQuotaResponse } from '@relora/sdk/contract';
import type { Principal } from '../access/principal.js';
import type { Quota } from '../quotas/quotaFile.js';
import type { ApiParts } from './parts.js';

/** The quota of the caller's tenant, and how much of it is used. */
export async function getQuota(
  { quotas, usage }: Pick<ApiParts, 'quotas' | 'usage'>,
  { tenant }: Principal,
): Promise<DeepPartial<GetQuotaResponse>> {
  const quota = quotas.of(tenant);
  const { runningJobs, queuedJobs, bytes, deviceHours } = await usage.held(tenant, quota.windowDays);
  const row = (name: string, used: number, max: Quota['bytes'], windowDays = 0) => ({
    name,
    used,
    max: max ?? undefined,
    windowDays,
  });
  return {
    tenant,
    quotas: [
      row('running_jobs', runningJobs, quota.runningJobs),
      row('queued_jobs', queuedJobs, quota.queuedJobs),
      row('bytes', bytes, quota.bytes),
      row('device_hours', deviceHours, quota.deviceHours, quota.windowDays),
    ],
  };
}
