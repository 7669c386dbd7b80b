import { setTimeout as pause } from 'node:timers/promises';
import { expect } from 'vitest';
import { bytesOf } from '../../server/dist/store/diskFiles.js';
import { Clocks } from './clocks.js';
import { insist } from './diskScenarios.js';
import { failingDisk, type FailingDisk } from './failingDisk.js';
import { HeldMemory } from './heldMemory.js';
import type { PostgresPair } from './postgresPair.js';
import { childrenOf, openHandles, residentBytes } from './processes.js';
import { pick, type Random } from './random.js';
import { s3Faults } from './s3Proxy.js';
import { fleetWithDatabase, type Scenario } from './scenario.js';
import { wholeWay } from './wholeWay.js';
import { leaseMs, type World } from './world.js';

/** Jobs go their way among faults for this long; then the faults end, everything is deleted, and usage is measured. */
const stretchMs = 90_000;
const faultEveryMs = 3000;
/** Two to compare in each third, even if the machine is so busy that a stretch takes minutes. */
const samplesMin = 6;
/** Limit of a server's copies: small, so that its disk usage soon reaches its maximum. */
const cacheBytesMax = 2 ** 20;

/** Allowed growth from the first third to the last. */
const growthMax: Readonly<Record<keyof Sample, { share: number; plus: number }>> = {
  memoryMiB: { share: 0.1, plus: 24 },
  handles: { share: 0, plus: 6 },
  children: { share: 0, plus: 0 },
  connections: { share: 0, plus: 3 },
  diskKiB: { share: 0.1, plus: 2048 },
  blobsKiB: { share: 0.1, plus: 1024 },
  rows: { share: 0, plus: 10 },
};

/** Usage when nothing is running and all jobs are deleted. */
interface Sample {
  /** Of the server that is never killed, after its garbage was collected. */
  memoryMiB: number;
  handles: number;
  /** Running processes started by servers. */
  children: number;
  /** Database connections of all servers. */
  connections: number;
  /** The data folders of all servers, and S3. */
  diskKiB: number;
  blobsKiB: number;
  /** Rows about jobs, data sets and what belongs to them. */
  rows: number;
}

const tables = ['jobs', 'events', 'checkpoints', 'artifacts', 'artifact_files', 'datasets', 'blob_files'];

/** All kinds of faults for the given time; one server is never killed, so that leaks become visible. */
export const soak: Scenario = {
  name: 'soak',
  what: 'all of these at random, and between them memory, handles, processes, connections, disk and rows (counted: minutes)',
  target: 60,
  perTrial: 20,
  needs: ['fleet', 'disk'],
  isShort: false,
  run: async (random, ends, expected, minutes) => {
    const disk = failingDisk();
    ends.push(() => disk.close());
    const clocks = new Clocks();
    const held = new HeldMemory();
    ends.push(() => held.close());
    const { world, postgres } = await fleetWithDatabase(ends, random, 3, {
      ...disk.settings,
      ...clocks.settings,
      ...held.settings,
      NODE_OPTIONS: `${clocks.settings.NODE_OPTIONS} ${held.settings.NODE_OPTIONS}`,
      RELORA_UNDELETE_SECONDS: '0',
      RELORA_CLEANUP_SECONDS: '1',
      RELORA_CACHE_BYTES_MAX: String(cacheBytesMax),
    });
    const storm = new Storm({ world, postgres, disk, clocks }, random);
    ends.push(() => disk.set('sound'));
    const samples: Sample[] = [];
    const endsAtMs = performance.now() + minutes * 60_000;
    while (performance.now() < endsAtMs || samples.length < samplesMin) {
      storm.begin();
      try {
        const stretchEndsMs = performance.now() + stretchMs;
        while (performance.now() < stretchEndsMs) await wholeWay(world, ends, expected, { insist });
      } finally {
        await storm.end();
      }
      await throwAllAway(world);
      samples.push(await measure(world, postgres, held));
    }
    const figures = `${storm.count} faults; ${summary(samples)}`;
    const third = Math.floor(samples.length / 3);
    for (const [name, { share, plus }] of Object.entries(growthMax) as [keyof Sample, Growth][]) {
      const most = (of: readonly Sample[]): number => Math.max(...of.map((sample) => sample[name]));
      const allowed = most(samples.slice(0, third)) * (1 + share) + plus;
      expect(most(samples.slice(-third)), `${name}: ${figures}`).toBeLessThanOrEqual(allowed);
    }
    return { faults: minutes, figures };
  },
};

type Growth = (typeof growthMax)[keyof Sample];

interface Targets {
  world: World;
  postgres: PostgresPair;
  disk: FailingDisk;
  clocks: Clocks;
}

/** Faults of every kind at random moments, one at a time. */
class Storm {
  count = 0;
  private isOver = true;
  private raging: Promise<void> = Promise.resolve();

  constructor(
    private readonly targets: Targets,
    private readonly random: Random,
  ) {}

  begin(): void {
    this.isOver = false;
    this.raging = this.rage();
    this.raging.catch(() => {}); // `end` throws it
  }

  /** Ends the faults. */
  async end(): Promise<void> {
    this.isOver = true;
    await this.raging;
    this.targets.clocks.setAll(0);
  }

  private async rage(): Promise<void> {
    for (;;) {
      await pause(2 * faultEveryMs * this.random());
      if (this.isOver) return;
      await pick(this.random, [
        this.killTrainer,
        this.killServer,
        this.freeze,
        this.database,
        this.s3,
        this.disk,
        this.clock,
      ]).call(this);
      this.count++;
    }
  }

  private async killTrainer(): Promise<void> {
    const pids = this.targets.world.trainerPids();
    if (pids.length === 0) return void this.count--;
    try {
      process.kill(pick(this.random, pids), 'SIGKILL');
    } catch {
      this.count--; // it has just ended by itself
    }
  }

  private async killServer(): Promise<void> {
    const { world, clocks } = this.targets;
    const index = 1 + Math.floor((world.servers.length - 1) * this.random());
    clocks.set(world.servers[index]!.folder, 0); // with a wrong clock it would not start
    await world.killServer(index);
  }

  private async freeze(): Promise<void> {
    const { process } = pick(this.random, this.targets.world.servers).running;
    process.kill('SIGSTOP');
    await pause(leaseMs * (1.5 + this.random()));
    process.kill('SIGCONT');
  }

  private async database(): Promise<void> {
    const { postgres } = this.targets;
    const which = this.random();
    if (which < 0.4) await postgres.restart();
    else if (which < 0.8) postgres.cut();
    else await postgres.pause(4000 * this.random());
  }

  private async s3(): Promise<void> {
    const s3 = this.targets.world.s3!;
    s3.fault = pick(this.random, s3Faults);
    await pause(4000 * this.random());
    s3.fault = null;
  }

  private async disk(): Promise<void> {
    const { disk } = this.targets;
    const mode = pick(this.random, ['full', 'readOnly', 'broken'] as const);
    disk.set(mode, mode === 'broken' ? 20 : 1000);
    await pause(1000 * this.random());
    disk.set('sound');
  }

  private async clock(): Promise<void> {
    const { world, clocks } = this.targets;
    clocks.set(pick(this.random, world.servers).folder, Math.round((2 * this.random() - 1) * 3_600_000));
  }
}

/** Deletes everything, like a person who needs space; returns when the space is free. */
async function throwAllAway({ client }: World): Promise<void> {
  for await (const { name } of client.listJobs()) await client.deleteJob(name);
  for await (const { name } of client.listDatasets()) await client.deleteDataset(name);
  const left = async (): Promise<number> => {
    let count = 0;
    for await (const _ of client.listJobs({ showDeleted: true })) count++;
    for await (const _ of client.listDatasets({ showDeleted: true })) count++;
    return count;
  };
  await expect.poll(left).toBe(0);
}

async function measure(world: World, postgres: PostgresPair, held: HeldMemory): Promise<Sample> {
  const pids = world.servers.map(({ running }) => running.process.pid!);
  const children = (): number => pids.reduce((sum, pid) => sum + childrenOf(pid).length, 0);
  // The process of an aborted task takes a moment to end.
  await expect.poll(children).toBe(0);
  await held.bytes(pids[0]!);
  const { database, bucketFolder } = world.shared!;
  let disk = 0;
  for (const { folder } of world.servers) disk += await bytesOf(folder);
  return {
    memoryMiB: Math.round(residentBytes(pids[0]!) / 2 ** 20),
    handles: openHandles(pids[0]!).length,
    children: children(),
    connections: await postgres.connectionsOf(database),
    diskKiB: Math.round(disk / 1024),
    blobsKiB: Math.round((await bytesOf(bucketFolder)) / 1024),
    rows: await postgres.rowsOf(database, tables),
  };
}

/** The first, middle and last sample of each metric. */
function summary(samples: readonly Sample[]): string {
  const shown = [samples[0]!, samples[samples.length >> 1]!, samples.at(-1)!];
  const names = Object.keys(growthMax) as (keyof Sample)[];
  return names.map((name) => `${name} ${shown.map((sample) => sample[name]).join(', ')}`).join('; ');
}
