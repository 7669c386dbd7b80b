import { cardServes, largestKind } from '@relora/engine/plan';
import { pinOf, type DeviceDescription, type DeviceName } from './jobDevices.js';

/** Where jobs can run on one server. */
export interface ServerPlaces {
  serverId: string;
  processorSlots: number;
  cardSlots: number;
  /** Empty until they were measured, which takes seconds: until then every wanted device is assumed. */
  devices: readonly DeviceDescription[];
}

/** A waiting job, with what decides when it is taken. */
export interface WaitingJob {
  id: string;
  priority: number;
  tenant: string;
  owner: string;
  devices: readonly DeviceName[];
  pin: string | null;
  notBeforeMs: number;
  /** Places that it needs at once. */
  places: number;
  isInFp8: boolean;
}

/** A running job, in a place on a server. */
export interface RunningPlace {
  serverId: string | null;
  device: string;
  tenant: string;
  owner: string;
  places: number;
  /** Null if unknown. */
  endMs: number | null;
}

export interface ForecastLimits {
  /** 0 for no limit. */
  ownerRunningMax: number;
  tenantRunningMax(tenant: string): number | null;
  /** Tenants of which no job starts, whatever becomes free. */
  closedTenants: ReadonlySet<string>;
}

/** Places of one kind on one server. */
interface Pool extends ServerPlaces {
  kind: 'processor' | 'card';
  count: number;
  free: number;
}

interface Aged extends WaitingJob {
  /** Its rank by age, the oldest first. */
  age: number;
}

/** Jobs that are always taken in this order. */
interface Line {
  jobs: readonly Aged[];
  /** How many of them were taken. */
  taken: number;
}

/** Number of starts after which others get a turn, in a forecast of thousands of jobs. */
const startsInTurn = 500;

const kindOf = (device: string): Pool['kind'] => (device === 'cuda' ? 'card' : 'processor');

/**
 * Simulates how servers take the jobs of a queue: whenever a place becomes free, the first job that may run there is taken, ordered by
 * priority, then by how many jobs its owner has running, then by age.
 */
export class QueueForecast {
  private readonly pools: Pool[];
  private readonly ofOwner = new Map<string, number>();
  private readonly ofTenant = new Map<string, number>();
  private readonly lines: readonly Line[];
  private running: {
    endMs: number;
    pool: Pool | undefined;
    tenant: string;
    owner: string;
    places: number;
  }[] = [];

  constructor(
    servers: readonly ServerPlaces[],
    running: readonly RunningPlace[],
    /** Ordered by age, the oldest first. */
    waiting: readonly WaitingJob[],
    private readonly limits: ForecastLimits,
    private readonly nowMs: number,
  ) {
    this.pools = servers.flatMap((server) =>
      (['processor', 'card'] as const).map((kind) => {
        const count = kind === 'card' ? server.cardSlots : server.processorSlots;
        return { ...server, kind, count, free: count };
      }),
    );
    this.lines = linesOf(waiting, nowMs);
    for (const { serverId, device, endMs, ...job } of running) {
      const pool = this.pools.find((one) => one.serverId === serverId && one.kind === kindOf(device));
      this.take(pool, job, endMs ?? Infinity);
    }
  }

  /** Places that a job may use, free or not. */
  placesOf(job: WaitingJob): { count: number; free: number } {
    const fitting = this.pools.filter((pool) => deviceAt(pool, job) !== undefined);
    const sum = (of: (pool: Pool) => number) => fitting.reduce((total, pool) => total + of(pool), 0);
    return {
      count: sum(({ count }) => count),
      free: Math.max(
        0,
        sum(({ free }) => free),
      ),
    };
  }

  /** Whether two jobs may want the same place. */
  compete(one: WaitingJob, other: WaitingJob): boolean {
    return this.pools.some(
      (pool) => deviceAt(pool, one) !== undefined && deviceAt(pool, other) !== undefined,
    );
  }

  /**
   * When a job is taken; null if unknown. Call it only once: it simulates the future.
   * @param secondsOf how long a job takes on a device; null if unknown
   */
  async startOf(
    id: string,
    secondsOf: (job: WaitingJob, device: DeviceDescription) => Promise<number | null>,
  ): Promise<number | null> {
    let starts = 0;
    for (let timeMs = this.nowMs; ;) {
      for (let next = this.next(timeMs); next !== undefined; next = this.next(timeMs)) {
        const { line, job, pool, device } = next;
        if (job.id === id) return timeMs;
        line.taken++;
        if (++starts % startsInTurn === 0) await new Promise(setImmediate);
        const description = pool.devices.find(({ backend }) => backend === device);
        const seconds = description === undefined ? null : await secondsOf(job, description);
        this.take(pool, job, seconds === null ? Infinity : timeMs + seconds * 1000);
      }
      const times = [
        ...this.running.map(({ endMs }) => endMs),
        ...this.lines.map((line) => headOf(line)?.notBeforeMs ?? 0).filter((time) => time > timeMs),
      ];
      timeMs = times.reduce((first, time) => Math.min(first, time), Infinity);
      if (timeMs === Infinity) return null;
      this.endUntil(timeMs);
    }
  }

  private next(timeMs: number) {
    let free = this.pools.filter((pool) => pool.free > 0);
    while (free.length > 0) {
      const best = this.bestOn(free, timeMs);
      if (best === undefined || best.pool.free >= best.job.places) return best;
      // Its places are kept for it, and no other job gets them.
      free = free.filter((pool) => pool !== best.pool);
    }
    return undefined;
  }

  private bestOn(free: readonly Pool[], timeMs: number) {
    let best: { line: Line; job: Aged; pool: Pool; device: DeviceName } | undefined;
    for (const line of this.lines) {
      const job = headOf(line);
      if (job === undefined || job.notBeforeMs > timeMs || !this.isWithinLimits(job)) continue;
      if (best !== undefined && !this.isBefore(job, best.job)) continue;
      for (const pool of free) {
        const device = deviceAt(pool, job);
        if (device === undefined) continue;
        best = { line, job, pool, device };
        break;
      }
    }
    return best;
  }

  private isBefore(job: Aged, other: Aged): boolean {
    if (job.priority !== other.priority) return job.priority > other.priority;
    const more = countOf(this.ofOwner, ownerOf(job)) - countOf(this.ofOwner, ownerOf(other));
    return more === 0 ? job.age < other.age : more < 0;
  }

  private isWithinLimits(job: WaitingJob): boolean {
    const { ownerRunningMax, tenantRunningMax, closedTenants } = this.limits;
    if (closedTenants.has(job.tenant)) return false;
    if (ownerRunningMax > 0 && countOf(this.ofOwner, ownerOf(job)) >= ownerRunningMax) return false;
    const max = tenantRunningMax(job.tenant);
    return max === null || countOf(this.ofTenant, job.tenant) < max;
  }

  private take(
    pool: Pool | undefined,
    { tenant, owner, places }: Pick<RunningPlace, 'tenant' | 'owner' | 'places'>,
    endMs: number,
  ): void {
    if (pool !== undefined) pool.free -= places;
    this.running.push({ endMs, pool, tenant, owner, places });
    this.count({ tenant, owner }, 1);
  }

  private endUntil(timeMs: number): void {
    for (const run of this.running) {
      if (run.endMs > timeMs) continue;
      if (run.pool !== undefined) run.pool.free += run.places;
      this.count(run, -1);
    }
    this.running = this.running.filter(({ endMs }) => endMs > timeMs);
  }

  private count(of: { tenant: string; owner: string }, change: 1 | -1): void {
    this.ofOwner.set(ownerOf(of), countOf(this.ofOwner, ownerOf(of)) + change);
    this.ofTenant.set(of.tenant, countOf(this.ofTenant, of.tenant) + change);
  }
}

/** What a job would run on in this pool, its first choice first. */
function deviceAt(
  { kind, count, devices: all }: Pool,
  { devices: wanted, pin, places, isInFp8 }: WaitingJob,
): DeviceName | undefined {
  // Each process of a job needs a card of its own, of one architecture, however many slots there are on one.
  const devices = isInFp8 ? all.filter((device) => cardServes(device, 'fp8Base')) : all;
  const cardCount = largestKind(devices.filter(({ backend }) => backend === 'cuda')).length;
  const most = kind === 'card' && all.length > 0 ? Math.min(count, cardCount) : count;
  if (most < places) return undefined;
  return wanted.find((name) => {
    if (kindOf(name) !== kind) return false;
    if (all.length === 0) return true;
    return devices.some((device) => device.backend === name && (pin === null || pinOf(device) === pin));
  });
}

/** A job that waits after a crash gets a line of its own, so that it does not block those behind it. */
function linesOf(waiting: readonly WaitingJob[], nowMs: number): Line[] {
  const lines = new Map<string, Aged[]>();
  for (const [age, job] of waiting.entries()) {
    const { id, priority, devices, pin, places, isInFp8, notBeforeMs } = job;
    const own = notBeforeMs > nowMs ? id : '';
    const key = JSON.stringify([priority, ownerOf(job), devices, pin, places, isInFp8, own]);
    const jobs = lines.get(key);
    if (jobs === undefined) lines.set(key, [{ ...job, age }]);
    else jobs.push({ ...job, age });
  }
  return [...lines.values()].map((jobs) => ({ jobs, taken: 0 }));
}

function headOf({ jobs, taken }: Line): Aged | undefined {
  return jobs[taken];
}

function ownerOf({ tenant, owner }: { tenant: string; owner: string }): string {
  return `${tenant}/${owner}`;
}

function countOf(counts: ReadonlyMap<string, number>, key: string): number {
  return counts.get(key) ?? 0;
}
