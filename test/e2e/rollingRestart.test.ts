import { JobState, parseJobSpec, type JobEvent, type ReloraClient } from '@relora/sdk';
import { describe, expect, test } from 'vitest';
import {
  blobStores,
  clientOf,
  fleet,
  runnerOf,
  uploaded,
  weightsOf,
  type FleetServer,
} from './serverFleet.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import { tcpBalancer } from './tcpBalancer.js';

const stepCount = 150;
/** Including the warm start. */
const allSteps = stepCount + tinySpec(stepCount).warm_start.step_count;
/** Enough to keep three servers busy while each of them is stopped and started. */
const jobCount = 6;

/** Every event of a job until its end, as a user sees them. */
async function watched(client: ReloraClient, name: string, onEvent: (event: JobEvent) => void = () => {}) {
  const events: JobEvent[] = [];
  for await (const event of client.watch(name)) {
    events.push(event);
    onEvent(event);
  }
  return events;
}

/** Checks that the journal has no gaps or duplicates, and that steps are consecutive within each attempt; returns how many were made. */
function wholeSteps(events: readonly JobEvent[]): number {
  expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
  let attempt = 0;
  let next = 0;
  for (const event of events) {
    if (event.kind !== 'step') continue;
    if (event.attempt === attempt) expect(event.step.step).toBe(next);
    // A later attempt starts from its checkpoint, which is not after the last step seen.
    else expect(event.step.step).toBeLessThanOrEqual(next);
    attempt = event.attempt;
    next = event.step.step + 1;
  }
  return next;
}

/** Checks that a job moved without being trained twice anywhere, and without an expired lease. */
function expectMovedAtCheckpoints(events: readonly JobEvent[]): void {
  const warnings = events.flatMap((event) => (event.kind === 'warning' ? [event.warning.reason] : []));
  const ofFaults = ['TRAINER_RESTARTED', 'CHECKPOINT_CORRUPT', 'RESUMED_ON_OTHER_BACKEND'];
  expect(warnings.filter((reason) => ofFaults.includes(reason))).toEqual([]);
  expect(events.filter(({ kind }) => kind === 'step')).toHaveLength(wholeSteps(events));
}

function statesOf(events: readonly JobEvent[]): JobState[] {
  return events.flatMap((event) => (event.kind === 'state' ? [event.state.to] : []));
}

/** Resolves when one of the jobs runs there, and has done enough steps for a checkpoint. */
async function untilBusy(
  server: FleetServer,
  servers: readonly FleetServer[],
  client: ReloraClient,
  names: string[],
) {
  const isBusy = async (): Promise<boolean> => {
    for (const name of names) {
      const { state, progress } = await client.getJob(name);
      const runs = state === JobState.RUNNING && progress!.step >= 10;
      if (runs && runnerOf(servers, name) === server) return true;
    }
    return false;
  };
  await expect.poll(isBusy).toBe(true);
}

async function undisturbedWeights(client: ReloraClient): Promise<string> {
  const { name } = await client.createJob(parseJobSpec(tinySpec(stepCount)));
  await client.waitForJob(name);
  return await weightsOf(client, name);
}

describe.each(blobStores.slice(-1))('three servers over PostgreSQL and $name', ({ url }) => {
  test('are stopped and started one after another while jobs run: none is lost, and none starts over', async () => {
    // Long enough that no busy server loses its leases: a server that stops hands its jobs over at once.
    const { servers, client } = await fleet(3, await url(), { RELORA_LEASE_SECONDS: '60' });
    await uploaded(client);
    const expected = await undisturbedWeights(client);

    const names: string[] = [];
    for (let index = 0; index < jobCount; index++)
      names.push((await client.createJob(parseJobSpec(tinySpec(stepCount)))).name);
    const watches = names.map(async (name) => await watched(client, name));
    // Clients that call meanwhile notice nothing.
    const calls = { made: 0, isOver: false };
    const caller = (async () => {
      while (!calls.isOver) {
        await client.getJob(names[calls.made % names.length]!);
        calls.made++;
      }
    })();

    for (const [index, server] of servers.entries()) {
      await untilBusy(server, servers, client, names);
      server.process.kill('SIGTERM');
      expect(await server.exited).toEqual({ code: 0, signal: null });
      servers[index] = await server.again();
    }
    const journals = await Promise.all(watches);
    calls.isOver = true;
    await caller;
    expect(calls.made).toBeGreaterThan(10);

    let moves = 0;
    for (const [index, events] of journals.entries()) {
      expect(wholeSteps(events)).toBe(allSteps);
      moves += Math.max(...events.map(({ attempt }) => attempt)) - 1;
      const letters = statesOf(events).map((state) => state.replace('JOB_STATE_', '')[0]);
      // QUEUED, STARTING, RUNNING: a job that was still starting when its server stopped was not RUNNING there.
      expect(letters.join('')).toMatch(/^Q(SR?Q)*SRS$/);
      expectMovedAtCheckpoints(events);
      expect(await weightsOf(client, names[index]!)).toBe(expected);
    }
    // Each server had a job when it was asked to stop; one may have ended just then.
    expect(moves).toBeGreaterThanOrEqual(2);
  });

  test('behind one balancer, one killed in the middle of a job: the SDK sees it through', async () => {
    const { servers, client } = await fleet(3, await url(), { RELORA_LEASE_SECONDS: '5' });
    await uploaded(client);
    const expected = await undisturbedWeights(client);

    const balanced = clientOf(await tcpBalancer(servers.map(({ grpcAddress }) => grpcAddress)));
    const { name } = await balanced.createJob(parseJobSpec(tinySpec(stepCount)));
    let killed: FleetServer | undefined;
    const events = await watched(balanced, name, (event) => {
      if (killed !== undefined || event.kind !== 'checkpoint' || event.checkpoint.step < 20) return;
      killed = runnerOf(servers, name);
      killed.process.kill('SIGKILL');
    });
    expect(killed).toBeDefined();
    expect(wholeSteps(events)).toBe(allSteps);
    expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
    expect(Math.max(...events.map(({ attempt }) => attempt))).toBeGreaterThanOrEqual(2);
    expect(await weightsOf(balanced, name)).toBe(expected);
  });

  test('one of the next version migrates the schema: the one that runs finishes a job, hands over another, and never starts again', async () => {
    const { settings, servers, client } = await fleet(1, await url(), {
      RELORA_LEASE_SECONDS: '60',
      RELORA_SLOTS: '2',
    });
    const [older] = servers as [FleetServer];
    await uploaded(client);
    // They train until somebody stops them.
    const spec = parseJobSpec(tinySpec(1_000_000));
    const finished = (await client.createJob(spec)).name;
    const moved = (await client.createJob(spec)).name;
    await untilBusy(older, servers, client, [finished]);
    await untilBusy(older, servers, client, [moved]);

    const later = await startServerProcess(temporaryFolder(), {
      ...settings,
      NODE_OPTIONS: `--import ${import.meta.resolve('./nextSchema.mjs')}`,
    });
    await expect(startServerProcess(temporaryFolder(), settings)).rejects.toThrow(
      /database has schema \d+, this server knows \d+: use the newer server that wrote it/,
    );
    const ended = async (by: ReloraClient, name: string): Promise<JobEvent[]> => {
      await by.updateJob(name, { stop: true });
      const events = await watched(by, name);
      expectMovedAtCheckpoints(events);
      expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
      await weightsOf(by, name); // checks every hash
      return events;
    };
    expect((await ended(client, finished)).at(-1)!.attempt).toBe(1);

    const newer = clientOf(later.grpcAddress);
    older.process.kill('SIGTERM');
    expect(await older.exited).toEqual({ code: 0, signal: null });
    await expect.poll(async () => (await newer.getJob(moved)).state).toBe(JobState.RUNNING);
    expect((await ended(newer, moved)).at(-1)!.attempt).toBe(2);
    // The later version reads what the older one stored after the migration.
    await weightsOf(newer, finished);
  });
});
