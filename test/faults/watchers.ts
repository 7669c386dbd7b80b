import { readFileSync } from 'node:fs';
import { connect, type ClientHttp2Session } from 'node:http2';
import { availableParallelism, loadavg } from 'node:os';
import { parseJobSpec } from '@relora/sdk';
import { WatchJobRequest, WatchJobResponse, type DeepPartial } from '@relora/sdk/contract';
import { expect } from 'vitest';
import { tinySpec, tinyText } from '../e2e/tinyJob.js';
import { HeldMemory } from './heldMemory.js';
import { residentBytes } from './processes.js';
import { fleetWithDatabase, pause, type Scenario } from './scenario.js';
import type { World } from './world.js';

const watcherCount = 2000;
const unreadShare = 0.1;
/** As many as a view would share. */
const streamsPerSession = 50;
/** Crowds that come and go, one after another. */
const crowdCount = 4;
/** Processor time of the trainer in each phase; phases with and without watchers alternate, so that other load on the machine affects both. */
const phaseSeconds = 8;
const delayMsMax = 1000;
/** How much the speed may differ between phases: caches and other load on the machine affect it. */
const speedShareMin = 0.95;
/** Allowed growth of what a server holds in memory, without garbage, from the first crowd to the last. */
const growthBytesMax = 32 * 2 ** 20;

/** Measures instead of making faults: clients that only watch, or do not even read, must cost a trainer nothing. */
export const watchers: Scenario = {
  name: 'watchers',
  what: '2,000 watchers of every step over three servers, a tenth of which reads nothing: the speed of the trainer per second of processor time, delays and memory (counted: watchers)',
  target: watcherCount,
  perTrial: watcherCount,
  needs: ['fleet'],
  isShort: false,
  run: async (random, ends, _, faults) => {
    const held = new HeldMemory();
    ends.push(() => held.close());
    const { world } = await fleetWithDatabase(ends, random, 3, {
      RELORA_LEASE_SECONDS: '30',
      ...held.settings,
    });
    const { client, servers } = world;
    await client.uploadDataset({ datasetId: 'watched', files: [{ content: tinyText(), fileName: 'a.txt' }] });
    const { name } = await client.createJob(parseJobSpec(watchedSpec()));
    await expect.poll(async () => (await client.getJob(name)).progress?.step ?? 0).toBeGreaterThan(2);
    const trainer = new Trainer(world, name);
    ends.push(() => trainer.close());
    const pids = servers.map(({ running }) => running.process.pid!);

    const alone = [await trainer.speed()];
    const watched: number[] = [];
    const delays: number[] = [];
    const memory: number[][] = [];
    let mostResident = 0;
    for (let round = 0; round < crowdCount; round++) {
      const { lastSequence: afterSequence } = await client.getJob(name);
      const crowd = new Crowd(
        servers.map(({ running }) => running.grpcAddress),
        { name, afterSequence, acceptSpans: true },
        faults,
      );
      ends.push(() => crowd.close());
      await crowd.stands();
      watched.push(await trainer.speed());
      mostResident = Math.max(mostResident, ...pids.map(residentBytes));
      memory.push(await Promise.all(pids.map(async (pid) => await held.bytes(pid))));
      delays.push(...crowd.delays);
      expect(crowd.lost).toEqual([]);
      crowd.close();
      alone.push(await trainer.speed());
    }
    world.throwIfEnded();

    delays.sort((one, other) => one - other);
    const p99 = delays[Math.floor(0.99 * delays.length)]!;
    const share = mean(watched) / mean(alone);
    const [first, last] = [memory[0]!, memory.at(-1)!];
    const mostGrowth = Math.max(...last.map((bytes, index) => bytes - first[index]!));
    const figures =
      `the trainer's speed per second of processor time is ${share.toFixed(3)} of that without watchers; ` +
      `p99 of the delay ${p99} ms, worst ${delays.at(-1)} ms (${delays.length} events measured); ` +
      `servers held ${mebibytes(mostGrowth)} MiB more at most with the last of ${crowdCount} crowds than with the first, ` +
      `${mebibytes(Math.max(...last))} MiB in all (${mebibytes(mostResident)} MiB resident, with garbage); ` +
      `load average ${loadavg()[0]!.toFixed(0)} on ${availableParallelism()} processors`;
    expect(share, figures).toBeGreaterThanOrEqual(speedShareMin);
    expect(p99, figures).toBeLessThan(delayMsMax);
    expect(mostGrowth, figures).toBeLessThan(growthBytesMax);
    return { faults, figures };
  },
};

/** A job with steps slow enough for a person to follow, which does not end by itself. */
function watchedSpec() {
  const spec = tinySpec(1_000_000);
  return {
    ...spec,
    dataset: 'datasets/watched',
    model: {
      config: {
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 4,
        num_attention_heads: 4,
      },
    },
    batch: { sequence_length: 128, sequence_count: 32, micro_batch_sequence_count: 8 },
    evaluation: { every_step_count: 100_000, token_count: 256, final_token_count: 256 },
    checkpoint: { every_step_count: 100_000 },
  };
}

/** Measures the processor time of a job's process. */
class Trainer {
  private readonly pid: number;
  private readonly samples: { ms: number; seconds: number }[] = [];
  private readonly timer: NodeJS.Timeout;

  constructor(
    private readonly world: World,
    private readonly job: string,
  ) {
    const pids = world.trainerPids();
    expect(pids, 'a trainer and nothing beside it').toHaveLength(1);
    this.pid = pids[0]!;
    this.timer = setInterval(() => this.sample(), 20);
  }

  close(): void {
    clearInterval(this.timer);
  }

  /** Steps per second of processor time. */
  async speed(): Promise<number> {
    const begin = await this.now();
    while (this.sample() - begin.seconds < phaseSeconds) await pause(100);
    const end = await this.now();
    return (end.step - begin.step) / (end.seconds - begin.seconds);
  }

  /** The time at which a step was done, however late its event arrived. */
  private async now(): Promise<{ step: number; seconds: number }> {
    const { client } = this.world;
    const { lastSequence } = await client.getJob(this.job);
    for await (const event of client.watch(this.job, { afterSequence: lastSequence }))
      if (event.kind === 'step')
        return { step: event.step.step, seconds: this.secondsAt(event.time.getTime()) };
    throw new Error('The job ended');
  }

  private sample(): number {
    const seconds = processorSeconds(this.pid);
    this.samples.push({ ms: Date.now(), seconds });
    return seconds;
  }

  /** Interpolated between the samples before and after it. */
  private secondsAt(ms: number): number {
    this.sample();
    const index = Math.max(
      1,
      this.samples.findIndex((sample) => sample.ms >= ms),
    );
    const [before, after] = [this.samples[index - 1]!, this.samples[index]!];
    const share = after.ms === before.ms ? 1 : (ms - before.ms) / (after.ms - before.ms);
    return before.seconds + Math.min(1, Math.max(0, share)) * (after.seconds - before.seconds);
  }
}

/** Cheap clients of one job, since they share the processors with the servers. */
class Crowd {
  readonly delays: number[] = [];
  /** Why readers' streams ended. */
  readonly lost: string[] = [];
  private readonly sessions: ClientHttp2Session[] = [];
  private readonly standing: Promise<void>[] = [];
  private isClosed = false;

  constructor(addresses: readonly string[], wish: DeepPartial<WatchJobRequest>, count: number) {
    const request = framed(WatchJobRequest.encode(WatchJobRequest.fromPartial(wish)).finish());
    const unread = Math.round(count * unreadShare);
    for (const [isRead, of] of [
      [false, unread],
      [true, count - unread],
    ] as const) {
      for (let index = 0; index < of; index++) {
        // A client that does not read gets its own connection: on a shared one it would block the others' streams.
        if (index % streamsPerSession === 0) {
          const address = addresses[this.sessions.length % addresses.length]!;
          const session = connect(`http://${address}`, {
            settings: { initialWindowSize: isRead ? 65_535 : 1024 },
          });
          session.setMaxListeners(0).on('error', () => {}); // its streams end too
          this.sessions.push(session);
        }
        this.standing.push(this.watch(this.sessions.at(-1)!, request, isRead));
      }
    }
  }

  async stands(): Promise<void> {
    await Promise.all(this.standing);
    this.delays.length = 0;
  }

  close(): void {
    this.isClosed = true;
    for (const session of this.sessions) session.destroy();
  }

  /** Resolves when the first bytes have arrived. */
  private async watch(session: ClientHttp2Session, request: Buffer, isRead: boolean): Promise<void> {
    const stream = session.request({
      ':method': 'POST',
      ':path': '/relora.v1.TrainingService/WatchJob',
      'content-type': 'application/grpc',
      te: 'trailers',
    });
    stream.end(request);
    stream.on('error', () => {}); // 'close' follows
    let why = 'without a word';
    stream.on('trailers', (trailers) => (why = `${trailers['grpc-status']}: ${trailers['grpc-message']}`));
    stream.on('close', () => {
      if (isRead && !this.isClosed) this.lost.push(`${why} (${stream.rstCode})`);
    });
    const refused = (resolve: (error: Error) => void) => () =>
      resolve(new Error('A watcher was refused, or its stream ended'));
    await new Promise((resolve, reject) => stream.once('response', resolve).once('close', refused(reject)));
    if (!isRead) return;
    let rest: Buffer = Buffer.alloc(0);
    await new Promise<void>((resolve, reject) => {
      stream.once('close', refused(reject));
      stream.on('data', (piece: Buffer) => {
        rest = this.take(rest.length === 0 ? piece : Buffer.concat([rest, piece]));
        resolve();
      });
    });
  }

  /** Decodes the oldest event of a chunk, which has the largest delay; returns the incomplete rest. */
  private take(bytes: Buffer): Buffer {
    let at = 0;
    for (let isOldest = true; bytes.length - at >= prefixBytes; isOldest = false) {
      const end = at + prefixBytes + bytes.readUInt32BE(at + 1);
      if (end > bytes.length) break;
      if (isOldest) {
        const { event } = WatchJobResponse.decode(bytes.subarray(at + prefixBytes, end));
        if (event?.step !== undefined) this.delays.push(Date.now() - event.time!.getTime());
      }
      at = end;
    }
    return bytes.subarray(at);
  }
}

const prefixBytes = 5;

function framed(message: Uint8Array): Buffer {
  const prefix = Buffer.alloc(prefixBytes);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

/** Of all its threads. */
function processorSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}

function mean(numbers: readonly number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}
