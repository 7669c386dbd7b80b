import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';
import { deviceHoursFreeMs, deviceHoursOf } from '../quotas/quotaUse.js';
import { Quotas } from '../quotas/quotas.js';
import { isTerminal, type Job } from './job.js';
import { stopConditions } from './stopText.js';

/** Why a job waits, or that it does not. */
export const waitReasons = [
  'notWaiting',
  'startsNext',
  'slotsBusy',
  'backingOff',
  'ownerLimit',
  'noServer',
  'runningQuota',
  'deviceHoursQuota',
] as const;
export type WaitReason = (typeof waitReasons)[number];

export interface Explanation {
  reason: WaitReason;
  /** For people: what would have to be free. */
  message: string;
  queuePosition: number;
  /** Of all servers together. */
  slotCount: number;
  busySlotCount: number;
  /** Jobs of its tenant and owner that run; `ownerRunningMax` is 0 for no limit. */
  ownerRunningCount: number;
  ownerRunningMax: number;
  /** Null where it waits for no time. */
  notBeforeMs: number | null;
  /** Null where nothing says. */
  estimatedStartMs: number | null;
}

/** Looks for what keeps a job from running. */
export class JobExplainer {
  constructor(
    private readonly db: Database,
    private readonly leases: Leases,
    private readonly options: { ownerRunningMax: number; slots: number },
    private readonly quotas = new Quotas(),
  ) {}

  async explain(job: Job): Promise<Explanation> {
    const { db } = this;
    const { ownerRunningMax } = this.options;
    const nowMs = this.leases.now();
    const row = await db
      .selectFrom('jobs')
      .select(['tenant', 'owner', 'not_before_ms'])
      .where('id', '=', job.id)
      .executeTakeFirstOrThrow();
    const running = await db
      .selectFrom('jobs')
      .select(['tenant', 'owner', 'progress', 'update_time_ms'])
      .where('state', 'in', ['starting', 'running'])
      .execute();
    const slotCount = (await this.leases.slotCount()) ?? this.options.slots;
    const ofOwner = running.filter(({ tenant, owner }) => tenant === row.tenant && owner === row.owner);
    const { queuePosition } = job;
    const found = {
      queuePosition,
      slotCount,
      busySlotCount: running.length,
      ownerRunningCount: ofOwner.length,
      ownerRunningMax,
      notBeforeMs: row.not_before_ms > nowMs ? row.not_before_ms : null,
    };
    // When slots come free, the soonest first; null for a job that does not know yet.
    const ends = (rows: typeof running): (number | null)[] =>
      rows
        .map(({ progress, update_time_ms }) => {
          const { remainingSeconds } = JSON.parse(progress) as Job['progress'];
          return remainingSeconds === null ? null : update_time_ms + remainingSeconds * 1000;
        })
        .sort((a, b) => (a ?? Infinity) - (b ?? Infinity));
    const at = (times: (number | null)[], index: number): number | null => {
      const time = times[index] ?? null;
      return time === null ? null : Math.max(nowMs, time, found.notBeforeMs ?? 0);
    };
    const answer = (reason: WaitReason, message: string, estimatedStartMs: number | null): Explanation => ({
      ...found,
      reason,
      message,
      estimatedStartMs,
    });

    if (job.state !== 'queued') {
      const has = job.state === 'succeeded' || job.state === 'failed' ? 'has' : 'is';
      const state = `The job ${has} ${job.state}${job.state === 'paused' ? ': resume it' : ''}`;
      const conditions = isTerminal(job.state) ? null : stopConditions(job.spec, job.progress);
      const why = isTerminal(job.state) ? job.stateReason : conditions;
      return answer('notWaiting', why === null ? state : `${state}. ${why}`, null);
    }
    if (slotCount === 0) return answer('noServer', 'No server runs jobs at present', null);
    if (found.notBeforeMs !== null) {
      const seconds = Math.ceil((found.notBeforeMs - nowMs) / 1000);
      return answer(
        'backingOff',
        `It waits ${seconds} s more after a crash: ${job.stateReason}`,
        found.notBeforeMs,
      );
    }
    const { runningJobs, deviceHours, windowDays } = this.quotas.of(row.tenant);
    const ofTenant = running.filter(({ tenant }) => tenant === row.tenant);
    if (runningJobs !== null && ofTenant.length >= runningJobs) {
      const message = `${ofTenant.length} jobs of the tenant ${row.tenant} run, and no more than ${runningJobs} may (quota running_jobs): one of them must end`;
      return answer('runningQuota', message, at(ends(ofTenant), 0));
    }
    const usedHours = deviceHours === null ? 0 : await deviceHoursOf(db, row.tenant, windowDays, nowMs);
    if (deviceHours !== null && usedHours >= deviceHours) {
      const message =
        `The tenant ${row.tenant} has used ${usedHours.toFixed(2)} device hours in the last ${windowDays} days, and may use ` +
        `${deviceHours} (quota device_hours): it starts when enough of them are longer ago`;
      const freeMs = await deviceHoursFreeMs(db, row.tenant, { deviceHours, windowDays }, nowMs);
      return answer('deviceHoursQuota', message, freeMs);
    }
    if (ownerRunningMax > 0 && ofOwner.length >= ownerRunningMax) {
      const message = `${ofOwner.length} jobs of the same owner run, and no more than ${ownerRunningMax} may: one of them must end`;
      return answer('ownerLimit', message, at(ends(ofOwner), 0));
    }
    const free = slotCount - running.length;
    if (queuePosition <= free) return answer('startsNext', 'A slot is free: it starts within seconds', nowMs);
    const needed = queuePosition - Math.max(0, free);
    const message = `${running.length} of ${slotCount} slots are busy and ${queuePosition - 1} jobs are before it: ${needed} must come free`;
    return answer('slotsBusy', message, at(ends(running), needed - 1));
  }
}
