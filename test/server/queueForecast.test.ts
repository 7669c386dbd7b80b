import { describe, expect, it } from 'vitest';
import {
  QueueForecast,
  type ForecastLimits,
  type RunningPlace,
  type ServerPlaces,
  type WaitingJob,
} from '../../server/dist/jobs/queueForecast.js';
import { processor } from './parts.js';

const nowMs = 1_000_000;
const noLimits: ForecastLimits = {
  ownerRunningMax: 0,
  tenantRunningMax: () => null,
  closedTenants: new Set(),
};
const card = { ...processor('native'), backend: 'cuda' as const, instructionSet: 'sm_90a' };

function server(changes: Partial<ServerPlaces> = {}): ServerPlaces {
  return { serverId: 'one', processorSlots: 1, cardSlots: 0, devices: [processor('native')], ...changes };
}

function job(id: string, changes: Partial<WaitingJob> = {}): WaitingJob {
  const owned = { priority: 0, tenant: 'default', owner: 'anna' };
  return {
    id,
    ...owned,
    devices: ['native'],
    pin: null,
    notBeforeMs: 0,
    places: 1,
    isInFp8: false,
    ...changes,
  };
}

function running(endSeconds: number | null, changes: Partial<RunningPlace> = {}): RunningPlace {
  const endMs = endSeconds === null ? null : nowMs + endSeconds * 1000;
  return {
    serverId: 'one',
    device: 'native',
    tenant: 'default',
    owner: 'anna',
    places: 1,
    endMs,
    ...changes,
  };
}

/** Seconds from now until each job starts, if every job takes 100 s. */
async function starts(
  servers: ServerPlaces[],
  runs: RunningPlace[],
  waiting: WaitingJob[],
  limits: Partial<ForecastLimits> = {},
  seconds: (id: string) => number | null = () => 100,
): Promise<Record<string, number | null>> {
  const found: Record<string, number | null> = {};
  for (const { id } of waiting) {
    const forecast = new QueueForecast(servers, runs, waiting, { ...noLimits, ...limits }, nowMs);
    const startMs = await forecast.startOf(id, async (one) => seconds(one.id));
    found[id] = startMs === null ? null : (startMs - nowMs) / 1000;
  }
  return found;
}

describe('the start of a job is foreseen', () => {
  it('by what runs and what is before it, on as many places as there are', async () => {
    const jobs = [job('a'), job('b'), job('c'), job('d')];
    expect(await starts([server()], [running(30)], jobs)).toEqual({ a: 30, b: 130, c: 230, d: 330 });
    const two = [server(), server({ serverId: 'two' })];
    expect(await starts(two, [running(30)], jobs)).toEqual({ a: 0, b: 30, c: 100, d: 130 });
    expect(await starts([server({ processorSlots: 0 })], [], jobs)).toMatchObject({ a: null });
  });

  it('with the places of one that needs several at once kept for it, on a server that has as many', async () => {
    const two = [server({ processorSlots: 2 })];
    const jobs = [job('gang', { places: 2 }), job('small'), job('other')];
    // `small` does not overtake it, although a slot is free.
    expect(await starts(two, [running(30)], jobs)).toEqual({ gang: 30, small: 130, other: 130 });
    // A job with two processes frees two slots.
    expect(await starts(two, [running(30, { places: 2 })], jobs)).toEqual({
      gang: 30,
      small: 130,
      other: 130,
    });
    const apart = [server(), server({ serverId: 'two' })];
    expect(await starts(apart, [], jobs)).toEqual({ gang: null, small: 0, other: 0 });
    const mixed = [server(), server({ serverId: 'two', processorSlots: 2 })];
    expect(await starts(mixed, [running(30, { serverId: 'two' })], jobs)).toEqual({
      gang: 30,
      small: 0,
      other: 100,
    });
  });

  it('on cards of its own for each process, however many slots they have', async () => {
    const ranks = [job('ranks', { devices: ['cuda'], places: 2 })];
    const cards = (count: number) =>
      server({ cardSlots: 2 * count, devices: Array.from({ length: count }, () => card) });
    expect(await starts([cards(1)], [], ranks)).toEqual({ ranks: null });
    expect(await starts([cards(2)], [], ranks)).toEqual({ ranks: 0 });
  });

  it('on a card that is new enough for its base in FP8', async () => {
    const mixed = (...computeCapabilities: string[]) =>
      server({
        cardSlots: computeCapabilities.length,
        devices: computeCapabilities.map((computeCapability) => ({ ...card, computeCapability })),
      });
    const jobs = [job('fp8', { devices: ['cuda'], isInFp8: true })];
    expect(await starts([mixed('8.0', '8.6')], [], jobs)).toEqual({ fp8: null });
    expect(await starts([mixed('8.0', '8.9')], [], jobs)).toEqual({ fp8: 0 });
  });

  it('not where a time before it is not known, but where others end sooner', async () => {
    const two = [server({ processorSlots: 2 })];
    expect(await starts(two, [running(null), running(30)], [job('a'), job('b')])).toEqual({ a: 30, b: 130 });
    const unknown = (id: string) => (id === 'a' ? null : 100);
    expect(await starts([server()], [], [job('a'), job('b')], {}, unknown)).toEqual({ a: 0, b: null });
  });

  it('by priority, and with turns between owners', async () => {
    const jobs = [
      job('a1'),
      job('a2'),
      job('b1', { owner: 'berta' }),
      job('low', { priority: -1 }),
      job('urgent', { priority: 5 }),
    ];
    expect(await starts([server()], [running(10)], jobs)).toEqual({
      urgent: 10,
      a1: 110,
      a2: 210,
      b1: 310,
      low: 410,
    });
    const berta = [running(10), running(50, { owner: 'berta' })];
    expect(
      await starts([server({ processorSlots: 2 })], berta, [job('b1', { owner: 'berta' }), job('a1')]),
    ).toEqual({ a1: 10, b1: 50 });
  });

  it('by the limits of owners and tenants', async () => {
    const jobs = [job('a1'), job('a2'), job('b', { owner: 'berta' })];
    const places = [server({ processorSlots: 3 })];
    expect(await starts(places, [], jobs, { ownerRunningMax: 1 })).toEqual({ a1: 0, a2: 100, b: 0 });
    const one = { tenantRunningMax: () => 1 };
    expect(await starts(places, [running(40)], jobs, one)).toEqual({ a1: 40, a2: 140, b: 240 });
    const closed = { closedTenants: new Set(['default']) };
    expect(await starts(places, [], [...jobs, job('c', { tenant: 'acme' })], closed)).toEqual({
      ...{ a1: null, a2: null, b: null },
      c: 0,
    });
  });

  it('on the devices that a job accepts, with the instructions that it began with', async () => {
    const mixed = [server(), server({ serverId: 'two', cardSlots: 1, processorSlots: 0, devices: [card] })];
    const jobs = [
      job('card', { devices: ['cuda'] }),
      job('either', { devices: ['cuda', 'native'] }),
      job('next', { devices: ['cuda'] }),
      job('processor'),
    ];
    expect(await starts(mixed, [], jobs)).toEqual({ card: 0, either: 0, next: 100, processor: 100 });
    const [old, later] = [processor('native', 'avx2'), processor('native', 'avx512')];
    const machines = [server({ devices: [old] }), server({ serverId: 'two', devices: [later] })];
    const pinned = [job('a', { pin: 'native avx512' }), job('b', { pin: 'native avx512' }), job('c')];
    expect(await starts(machines, [], pinned)).toEqual({ a: 0, b: 100, c: 0 });
    const elsewhere = job('x', { pin: 'native amx' });
    expect(await starts(machines, [], [elsewhere])).toEqual({ x: null });
    const forecast = new QueueForecast(machines, [], [elsewhere], noLimits, nowMs);
    expect(forecast.placesOf(elsewhere).count).toBe(0);
    expect(forecast.compete(pinned[0]!, job('c'))).toBe(true);
    expect(forecast.compete(elsewhere, job('c'))).toBe(false);
  });

  it('after the pause of a crash, in which others pass', async () => {
    const jobs = [job('crashed', { notBeforeMs: nowMs + 20_000 }), job('a'), job('b')];
    expect(await starts([server()], [], jobs)).toEqual({ crashed: 100, a: 0, b: 200 });
  });

  it('of thousands of jobs without keeping others waiting', async () => {
    const jobs = Array.from({ length: 5000 }, (_, index) =>
      job(`job-${index}`, { owner: `owner-${index % 7}` }),
    );
    const forecast = new QueueForecast([server({ processorSlots: 4 })], [], jobs, noLimits, nowMs);
    let turns = 0;
    const timer = setInterval(() => turns++, 0);
    const startMs = await forecast.startOf('job-4999', async () => 100);
    clearInterval(timer);
    expect((startMs! - nowMs) / 100_000).toBe(Math.floor(4999 / 4));
    expect(turns).toBeGreaterThan(0);
  });
});
