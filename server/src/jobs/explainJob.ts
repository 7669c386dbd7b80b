import { capabilityMins } from '@relora/engine/plan';
import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';
import { deviceHoursFreeMs, deviceHoursOf } from '../quotas/quotaUse.js';
import { Quotas } from '../quotas/quotas.js';
import { isTerminal, type Job } from './job.js';
import { isOnCards } from './jobDevices.js';
import type { WaitingJob } from './queueForecast.js';
import { kindOf, mayJoin, offeredPlaces, placesOf } from './gangPlaces.js';
import { fairOrder } from './queueOrder.js';
import { QueueSnapshots, type OwnMachine, type QueueSnapshot } from './queueSnapshot.js';
import { stopConditions } from './stopText.js';

/** Why a job waits; `notWaiting` if it does not. */
export const waitReasons = [
  'notWaiting',
  'startsNext',
  'slotsBusy',
  'backingOff',
  'ownerLimit',
  'noServer',
  'runningQuota',
  'deviceHoursQuota',
  'noDevice',
] as const;
export type WaitReason = (typeof waitReasons)[number];

export interface Explanation {
  reason: WaitReason;
  /** For people: what would have to become free. */
  message: string;
  queuePosition: number;
  /** Of all servers together. */
  slotCount: number;
  busySlotCount: number;
  /** Running jobs of its tenant and owner; `ownerRunningMax` is 0 for no limit. */
  ownerRunningCount: number;
  ownerRunningMax: number;
  /** Null if it does not wait for a time. */
  notBeforeMs: number | null;
  /** Null if unknown. */
  estimatedStartMs: number | null;
}

/** Finds out what keeps a job from running. */
export class JobExplainer {
  private readonly snapshots: QueueSnapshots;

  constructor(
    private readonly db: Database,
    private readonly leases: Leases,
    private readonly options: { ownerRunningMax: number },
    machine: OwnMachine,
    private readonly quotas = new Quotas(),
  ) {
    this.snapshots = new QueueSnapshots(db, leases, machine, quotas);
  }

  async explain(job: Job): Promise<Explanation> {
    const { db } = this;
    const { ownerRunningMax } = this.options;
    const nowMs = this.leases.now();
    const { tenant, owner } = await db
      .selectFrom('jobs')
      .select(['tenant', 'owner'])
      .where('id', '=', job.id)
      .executeTakeFirstOrThrow();
    const queue = await this.snapshots.take(nowMs);
    const { running, servers } = queue;
    const waiting = queue.waiting.find(({ id }) => id === job.id);
    const ofOwner = running.filter((one) => one.tenant === tenant && one.owner === owner);
    const notBeforeMs = waiting?.notBeforeMs ?? 0;
    const found = {
      queuePosition: job.queuePosition,
      slotCount: servers.reduce((sum, { processorSlots, cardSlots }) => sum + processorSlots + cardSlots, 0),
      busySlotCount: running.reduce((sum, { places }) => sum + places, 0),
      ownerRunningCount: ofOwner.length,
      ownerRunningMax,
      notBeforeMs: notBeforeMs > nowMs ? notBeforeMs : null,
    };
    const answer = (reason: WaitReason, message: string, estimatedStartMs: number | null): Explanation => ({
      ...found,
      reason,
      message,
      estimatedStartMs,
    });

    // A job that was claimed after it was read no longer waits, either.
    if (job.state !== 'queued' || waiting === undefined) {
      const has = job.state === 'succeeded' || job.state === 'failed' ? 'has' : 'is';
      const state = `The job ${has} ${job.state}${job.state === 'paused' ? ': resume it' : ''}`;
      const conditions = isTerminal(job.state) ? null : stopConditions(job.spec, job.progress);
      const why = isTerminal(job.state) ? job.stateReason : conditions;
      return answer('notWaiting', why === null ? state : `${state}. ${why}`, null);
    }
    if (found.slotCount === 0) return answer('noServer', 'No server runs jobs at present', null);

    const limits = {
      ownerRunningMax,
      tenantRunningMax: (name: string) => this.quotas.of(name).runningJobs,
      closedTenants: await this.snapshots.closedTenants(),
    };
    const forecast = queue.forecast(limits);
    const places = forecast.placesOf(waiting);
    if (places.count === 0) {
      const together = waiting.places > 1 ? await this.overServers(waiting) : null;
      if (together !== null) return answer(together.reason, together.message, null);
      return answer('noDevice', noDevice(waiting, job.stateReason), null);
    }
    const order = orderOf(queue);
    const ahead = new Set(order.slice(0, order.indexOf(job.id)));
    const before = queue.waiting.filter((one) => ahead.has(one.id) && forecast.compete(waiting, one)).length;
    const startMs = await queue.startOf(job.id, forecast);
    if (found.notBeforeMs !== null) {
      const seconds = Math.ceil((found.notBeforeMs - nowMs) / 1000);
      return answer('backingOff', `It waits ${seconds} s more after a crash: ${job.stateReason}`, startMs);
    }
    const { runningJobs, deviceHours, windowDays } = this.quotas.of(tenant);
    const ofTenant = running.filter((one) => one.tenant === tenant);
    if (runningJobs !== null && ofTenant.length >= runningJobs) {
      const message = `${ofTenant.length} jobs of the tenant ${tenant} run, and no more than ${runningJobs} may (quota running_jobs): one of them must end`;
      return answer('runningQuota', message, startMs);
    }
    const usedHours = deviceHours === null ? 0 : await deviceHoursOf(db, tenant, windowDays, nowMs);
    if (deviceHours !== null && usedHours >= deviceHours) {
      const message =
        `The tenant ${tenant} has used ${usedHours.toFixed(2)} device hours in the last ${windowDays} days, and may use ` +
        `${deviceHours} (quota device_hours): it starts when enough of them are longer ago`;
      const freeMs = await deviceHoursFreeMs(db, tenant, { deviceHours, windowDays }, nowMs);
      return answer('deviceHoursQuota', message, freeMs);
    }
    if (ownerRunningMax > 0 && ofOwner.length >= ownerRunningMax) {
      const message = `${ofOwner.length} jobs of the same owner run, and no more than ${ownerRunningMax} may: one of them must end`;
      return answer('ownerLimit', message, startMs);
    }
    if (startMs !== null && startMs <= nowMs)
      return answer('startsNext', 'A slot is free: it starts within seconds', nowMs);
    if (waiting.places > 1 && before === 0)
      return answer(
        'slotsBusy',
        `It takes ${waiting.places} ${waiting.devices.every(isOnCards) ? 'cards' : 'slots'} of one server at once, and ${places.free} of ${places.count} that it may use are free: they are kept for it until the rest are`,
        startMs,
      );
    const needed = Math.max(1, before + waiting.places - places.free);
    const message = `${places.count - places.free} of ${places.count} slots that it may use are busy and ${before} jobs are before it: ${needed} must come free`;
    return answer('slotsBusy', message, startMs);
  }

  /** Explains a job that needs more places at once than any one server has; null if servers do not train together. */
  private async overServers({
    id,
    places,
    devices,
  }: WaitingJob): Promise<{ reason: WaitReason; message: string } | null> {
    const on = devices.every(isOnCards) ? 'cards' : 'processors';
    const them = on === 'cards' ? 'cards' : 'slots';
    const servers = ((await this.leases.servers()) ?? []).filter((server) => mayJoin(server, on));
    const countOf = (some: typeof servers) => some.reduce((sum, server) => sum + placesOf(server, on), 0);
    const kinds = new Map(servers.map((server) => [kindOf(server, on), [] as typeof servers]));
    for (const server of servers) kinds.get(kindOf(server, on))!.push(server);
    const [most = []] = [...kinds.values()].sort((one, other) => countOf(other) - countOf(one));
    const count = countOf(most);
    if (count >= places) {
      const offered = await offeredPlaces(this.db, id);
      const message = `It takes ${places} ${them} of ${most.length} servers at once (RELORA_MPIRUN), which have ${count}: ${offered} are kept for it until the rest come free`;
      return { reason: 'slotsBusy', message };
    }
    if (countOf(servers) < places) return null;
    const message = `It takes ${places} ${them} at once, and servers of one kind have ${count} of them at most. They do not compute alike: ${[...kinds.keys()].join(' / ')}`;
    return { reason: 'noDevice', message };
  }
}

/** Ids in the order in which jobs would be taken if all could run anywhere. */
function orderOf({ waiting, running }: QueueSnapshot): string[] {
  const counts = new Map<string, number>();
  for (const { tenant, owner } of running) {
    const key = `${tenant}/${owner}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return fairOrder(
    [...waiting].sort((one, other) => other.priority - one.priority),
    counts,
  );
}

function noDevice({ devices, pin, places, isInFp8 }: WaitingJob, stateReason: string): string {
  if (isInFp8)
    return `No server has ${places > 1 ? `${places} cards` : 'a card'} of compute capability ${capabilityMins.fp8Base} or newer, which FP8_BASE needs`;
  if (places > 1 && devices.every(isOnCards))
    return `No server has ${places} cards${pin === null ? '' : ` of the kind on which the job began (${pin})`}, which its processes take at once, nor have those with RELORA_MPIRUN together`;
  if (places > 1 && pin === null)
    return `No server has ${places} slots on ${devices.join(', ')}, which its processes take at once, nor have those with RELORA_MPIRUN together`;
  if (pin !== null)
    return `No server has ${pin}, on which the job began: start one, or cancel the job and fork it, which gives other bits`;
  return `No server has a place on ${devices.join(', ')}: ${stateReason}`;
}
