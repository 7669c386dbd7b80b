import { readStoredRunSpec, type RunSpec } from '@relora/engine/plan';
import type { Quotas } from '../quotas/quotas.js';
import type { Database } from '../store/database.js';
import type { Leases } from '../store/leases.js';
import type { JobProgress } from './job.js';
import { isInFp8, placesNeeded, readDevices, type DeviceDescription, type DeviceName } from './jobDevices.js';
import { PlannedTimes, type SecondsOf } from './plannedTimes.js';
import {
  QueueForecast,
  type ForecastLimits,
  type RunningPlace,
  type ServerPlaces,
  type WaitingJob,
} from './queueForecast.js';

/** What this server runs jobs on. */
export interface OwnMachine {
  places(): { processorSlots: number; cardSlots: number };
  /** Empty until they were measured. */
  devices(): readonly DeviceDescription[];
  /** What `auto` would mean for a job; null while that is unknown. */
  resolve(spec: RunSpec): DeviceName | null;
  secondsOf: SecondsOf;
}

/** The queue and the servers at one moment. */
export interface QueueSnapshot {
  servers: readonly ServerPlaces[];
  running: readonly RunningPlace[];
  /** The oldest first. */
  waiting: readonly WaitingJob[];
  forecast(limits: ForecastLimits): QueueForecast;
  /** When a job starts according to a forecast, which is used up; null if unknown. */
  startOf(id: string, forecast: QueueForecast): Promise<number | null>;
}

/** Reads what decides when jobs start. */
export class QueueSnapshots {
  private readonly times: PlannedTimes;

  constructor(
    private readonly db: Database,
    private readonly leases: Leases,
    private readonly machine: OwnMachine,
    private readonly quotas: Quotas,
  ) {
    this.times = new PlannedTimes(db, machine.secondsOf);
  }

  /** @param nowMs the time to use as now */
  async take(nowMs: number): Promise<QueueSnapshot> {
    const servers = await this.servers();
    const running = await this.running(servers);
    const rows = await this.db
      .selectFrom('jobs')
      .select(['id', 'priority', 'tenant', 'owner', 'devices', 'pin', 'not_before_ms', 'progress'])
      .select((eb) => [placesNeeded(eb).as('places'), isInFp8(eb).as('is_in_fp8')])
      .where('state', '=', 'queued')
      .where('delete_time_ms', 'is', null)
      .orderBy('create_time_ms')
      .orderBy('id')
      .execute();
    const progress = new Map(rows.map((row) => [row.id, row.progress]));
    const waiting: WaitingJob[] = [];
    for (const { id, priority, tenant, owner, ...row } of rows)
      waiting.push({
        ...{ id, priority, tenant, owner },
        devices: await this.devicesOf(id, row.devices),
        // If no other server could take it, it resumes on whatever there is.
        pin: this.leases.isShared ? row.pin : null,
        notBeforeMs: row.not_before_ms,
        places: row.places,
        isInFp8: Boolean(row.is_in_fp8),
      });
    return {
      servers,
      running,
      waiting,
      forecast: (limits) => new QueueForecast(servers, running, waiting, limits, nowMs),
      startOf: async (id, forecast) =>
        await forecast.startOf(
          id,
          async (job, device) =>
            await this.times.remaining(job.id, JSON.parse(progress.get(job.id)!) as JobProgress, device),
        ),
    };
  }

  /** Tenants of which no job starts, whatever becomes free. */
  async closedTenants(): Promise<ReadonlySet<string>> {
    if (!this.quotas.mayClose) return new Set();
    const { usedUp } = await this.db
      .transaction()
      .execute(async (trx) => await this.quotas.closedTenants(trx, this.leases.now()));
    return new Set(usedUp);
  }

  private async servers(): Promise<ServerPlaces[]> {
    const rows = await this.leases.servers();
    if (rows === null)
      return [{ serverId: this.leases.serverId, ...this.machine.places(), devices: this.machine.devices() }];
    return rows.map(({ id, slots, card_slots, devices }) => ({
      serverId: id,
      processorSlots: slots,
      cardSlots: card_slots,
      devices: JSON.parse(devices) as DeviceDescription[],
    }));
  }

  private async running(servers: readonly ServerPlaces[]): Promise<RunningPlace[]> {
    const rows = await this.db
      .selectFrom('jobs')
      .leftJoin('attempts', (join) =>
        join
          .onRef('attempts.job_id', '=', 'jobs.id')
          .onRef('attempts.job_create_time_ms', '=', 'jobs.create_time_ms')
          .onRef('attempts.attempt', '=', 'jobs.attempt'),
      )
      .select(['jobs.id', 'jobs.tenant', 'jobs.owner', 'jobs.lease_server', 'jobs.progress'])
      .select(['jobs.update_time_ms', 'attempts.device', 'attempts.processes'])
      .where('jobs.state', 'in', ['starting', 'running'])
      .execute();
    const places: RunningPlace[] = [];
    for (const {
      id,
      tenant,
      owner,
      lease_server: serverId,
      device,
      progress: text,
      update_time_ms,
      processes,
    } of rows) {
      const progress = JSON.parse(text) as JobProgress;
      const description = servers
        .find((server) => server.serverId === serverId)
        ?.devices.find(({ backend }) => backend === device);
      const seconds =
        progress.remainingSeconds ??
        (description === undefined ? null : await this.times.remaining(id, progress, description));
      const endMs = seconds === null ? null : update_time_ms + seconds * 1000;
      places.push({ serverId, device: device ?? 'native', tenant, owner, places: processes ?? 1, endMs });
    }
    return places;
  }

  /** The specification decides what `auto` means; while that is unknown, a processor. */
  private async devicesOf(jobId: string, text: string): Promise<DeviceName[]> {
    const devices = readDevices(text);
    if (!devices.includes('auto')) return devices as DeviceName[];
    if (this.machine.places().cardSlots === 0) return ['native'];
    const row = await this.db.selectFrom('jobs').select('spec').where('id', '=', jobId).executeTakeFirst();
    const device = row === undefined ? null : this.machine.resolve(readStoredRunSpec(row.spec));
    return [device ?? 'native'];
  }
}
