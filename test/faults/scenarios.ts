import { JobState } from '@relora/sdk';
import { expect } from 'vitest';
import { chunkBytes } from '../../server/dist/store/blobStore.js';
import { tinyText } from '../e2e/tinyJob.js';
import { launchers } from '../mpi.js';
import { Clocks } from './clocks.js';
import { diskScenarios } from './diskScenarios.js';
import { Hosts } from './hosts.js';
import { PostgresPair } from './postgresPair.js';
import { pick, type Random } from './random.js';
import { s3Faults, type S3Fault } from './s3Proxy.js';
import { fleetWithDatabase, insistWhere, meanwhile, pause, type Scenario } from './scenario.js';
import { soak } from './soak.js';
import { watchers } from './watchers.js';
import { wholeWay } from './wholeWay.js';
import { leaseMs, World } from './world.js';

/** Kills trainers, servers, or both. */
function killer(world: World, random: Random): () => Promise<number> {
  return async () => {
    const whom = pick(random, ['trainer', 'server', 'both'] as const);
    let count = 0;
    if (whom !== 'server') {
      const pids = world.trainerPids();
      if (pids.length > 0) {
        try {
          process.kill(pick(random, pids), 'SIGKILL');
          count++;
        } catch {
          // it has just ended by itself
        }
      }
    }
    if (whom !== 'trainer') {
      await world.killServer(Math.floor(random() * world.servers.length));
      count++;
    }
    return count;
  };
}

/**
 * Freezes the server that runs the job, and wakes it at a random moment after another server took the job over. Not a fault if the job did
 * not run there, or ended before the frozen server woke: then there was nothing that it could have disturbed.
 */
async function freezeRunner(world: World, random: Random, job: string): Promise<number> {
  const runner = world.newestAttempt(job);
  if (runner === undefined) return 0;
  const others = world.clientWithout(runner.index);
  const { process } = world.servers[runner.index]!.running;
  process.kill('SIGSTOP');
  try {
    const isRunning = async (isExpected: (attempt: number) => boolean): Promise<boolean> => {
      const { state, attempt } = await others.getJob(job);
      return (state === JobState.STARTING || state === JobState.RUNNING) && isExpected(attempt);
    };
    if (!(await isRunning((attempt) => attempt === runner.attempt))) return 0;
    const isTakenOver = async (): Promise<boolean> => await isRunning((attempt) => attempt > runner.attempt);
    await expect.poll(isTakenOver, { timeout: takeoverMsMax, interval: 50 }).toBe(true);
    await pause(leaseMs * random());
    return (await isTakenOver()) ? 1 : 0;
  } finally {
    process.kill('SIGCONT');
    await others.close();
  }
}

/** Many leases: trials may run at the lowest priority on a busy machine. */
const takeoverMsMax = 120_000;

/** A task whose process was killed twice from outside has failed, and is requested again. */
const insistOnTasks = insistWhere(({ reason }) => reason === 'TASK_CRASHED');

/** More frequent kills would leave no time for progress: a server starts in about a second, and so does a trainer. */
const killEveryMs = 1200;

function s3Scenario(fault: S3Fault, what: string, isShort: boolean): Scenario {
  return {
    name: `s3-${fault}`,
    what,
    target: 100,
    perTrial: 50,
    needs: ['fleet'],
    isShort,
    run: async (random, ends, expected, faults) => {
      const { world } = await fleetWithDatabase(ends, random, 2);
      const { s3 } = world;
      s3!.fault = fault;
      do await wholeWay(world, ends, expected);
      while (s3!.count < faults);
      s3!.fault = null;
      return s3!.count;
    },
  };
}

export const scenarios: Scenario[] = [
  {
    name: 'kill-1',
    what: 'kill -9 of trainers and of the one server, at random moments of upload, create, train, export, download',
    target: 250,
    perTrial: 25,
    needs: [],
    isShort: true,
    run: async (random, ends, expected, faults) => {
      const world = await World.alone(ends);
      return await meanwhile(
        () => wholeWay(world, ends, expected, { insist: insistOnTasks }),
        random,
        { everyMs: killEveryMs, faults },
        killer(world, random),
      );
    },
  },
  {
    name: 'kill-3',
    what: 'the same with three servers over PostgreSQL and S3',
    target: 250,
    perTrial: 25,
    needs: ['fleet'],
    isShort: true,
    run: async (random, ends, expected, faults) => {
      const { world } = await fleetWithDatabase(ends, random, 3);
      return await meanwhile(
        () => wholeWay(world, ends, expected, { insist: insistOnTasks }),
        random,
        { everyMs: killEveryMs, faults },
        killer(world, random),
      );
    },
  },
  {
    name: 'frozen',
    what: 'a server frozen past its lease and woken while another has its job',
    target: 50,
    perTrial: 13,
    needs: ['fleet'],
    isShort: false,
    run: async (random, ends, expected, faults) => {
      // So long that no server loses its lease but by being frozen, even if the machine is busy.
      const { world } = await fleetWithDatabase(ends, random, 3, { RELORA_LEASE_SECONDS: '6' });
      let job = '';
      return await meanwhile(
        () => wholeWay(world, ends, expected, { onJob: (name) => (job = name) }),
        random,
        { everyMs: 1500, faults },
        async () => await freezeRunner(world, random, job),
      );
    },
  },
  {
    name: 'ranks',
    what: 'processes of a job of two killed, or frozen until their server ends them',
    target: 50,
    perTrial: 17,
    needs: [],
    isShort: false,
    run: async (random, ends, _, faults) => {
      const person = { replicas: 2, insist: insistOnTasks };
      const world = await World.alone(ends, {
        RELORA_SLOTS: '2',
        RELORA_TRAINER_SILENCE_SECONDS: '5',
        RELORA_TRAINER_GRACE_SECONDS: '1',
      });
      const expected = await wholeWay(world, ends, null, person);
      const harm = async (): Promise<number> => {
        const pids = world.trainerPids();
        if (pids.length < 2) return 0; // the job is not in training
        process.kill(pick(random, pids), random() < 0.7 ? 'SIGKILL' : 'SIGSTOP');
        return 1;
      };
      return await meanwhile(
        () => wholeWay(world, ends, expected, person),
        random,
        { everyMs: killEveryMs, faults },
        harm,
      );
    },
  },
  {
    name: 'network',
    what: 'a machine cut off from the others and from the store, at any moment of the way of a job that it trains with another by MPI',
    target: 20,
    perTrial: 5,
    needs: ['hosts'],
    isShort: false,
    run: async (random, ends, _, faults) => {
      const hosts = new Hosts(2);
      ends.push(() => hosts.close());
      const postgres = await PostgresPair.start(hosts.machine);
      ends.push(async () => await postgres.stop());
      const { name, command } = pick(
        random,
        launchers.filter(({ isMissing }) => !isMissing),
      );
      const silenceMs = 5000;
      const world = await World.onHosts(ends, hosts, postgres, {
        RELORA_SLOTS: '1',
        RELORA_MPIRUN: command,
        RELORA_MPI_FLAGS:
          name === 'MPICH'
            ? `-launcher ssh -launcher-exec ${hosts.agent} -iface eth0`
            : `--mca plm_rsh_agent ${hosts.agent} --mca btl tcp,self --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0`,
        RELORA_TRAINER_SILENCE_SECONDS: String(silenceMs / 1000),
        RELORA_TRAINER_GRACE_SECONDS: '1',
      });
      const person = { replicas: 2 };
      const expected = await wholeWay(world, ends, null, person);
      const cutOff = async (): Promise<number> => {
        const index = Math.floor(random() * hosts.count);
        hosts.cut(index);
        await pause(silenceMs * (0.5 + 1.5 * random()));
        hosts.join(index);
        return 1;
      };
      return await meanwhile(
        () => wholeWay(world, ends, expected, person),
        random,
        { everyMs: 4000, faults },
        cutOff,
      );
    },
  },
  {
    name: 'database',
    what: 'PostgreSQL crashed and restarted, its connections cut, hung for up to 30 s',
    target: 35,
    perTrial: 15,
    needs: ['fleet'],
    isShort: false,
    run: async (random, ends, expected, faults) => {
      const { world, postgres } = await fleetWithDatabase(ends, random, 2);
      const fault = async (): Promise<number> => {
        const which = random();
        if (which < 0.4) await postgres.restart();
        else if (which < 0.8) postgres.cut();
        else await postgres.pause(random() < 0.3 ? 30_000 : 5000);
        return 1;
      };
      return await meanwhile(() => wholeWay(world, ends, expected), random, { everyMs: 1500, faults }, fault);
    },
  },
  {
    name: 'failover',
    what: 'PostgreSQL gone for good, its synchronous standby promoted',
    target: 15,
    perTrial: 4,
    needs: ['fleet'],
    isShort: false,
    run: async (random, ends, expected, faults) => {
      const { world, postgres } = await fleetWithDatabase(ends, random, 2);
      await postgres.addStandby();
      const failover = async (): Promise<number> => {
        await postgres.failover();
        await postgres.addStandby();
        return 1;
      };
      return await meanwhile(
        () => wholeWay(world, ends, expected),
        random,
        { everyMs: 1500, faults },
        failover,
      );
    },
  },
  s3Scenario('500', 'S3 answers 500, before or after it did what it was asked', false),
  s3Scenario('503', 'S3 answers 503, before or after', true),
  s3Scenario('slow', 'S3 is slow', false),
  s3Scenario('cut', 'S3 cuts streams of requests and of answers', false),
  s3Scenario('wrong', 'S3 takes or gives wrong bytes', false),
  {
    name: 's3-parts',
    what: 'S3 does each of these to files that are sent in parts (counted: faults of these)',
    target: 10,
    perTrial: 5,
    needs: ['fleet'],
    isShort: false,
    run: async (random, ends, _, faults) => {
      // Not to be lost while files are sent.
      const { world } = await fleetWithDatabase(ends, random, 2, { RELORA_LEASE_SECONDS: '30' });
      const { s3 } = world;
      const person = { text: tinyText().repeat(Math.ceil((1.1 * chunkBytes) / tinyText().length)) };
      const expected = await wholeWay(world, ends, null, person);
      for (const [index, fault] of s3Faults.entries()) {
        s3!.fault = fault;
        do await wholeWay(world, ends, expected, person);
        while (s3!.countOfParts < ((index + 1) * faults) / s3Faults.length);
      }
      s3!.fault = null;
      return s3!.countOfParts;
    },
  },
  {
    name: 'clock',
    what: 'clocks of servers jump by up to an hour either way, while leases hold',
    target: 50,
    perTrial: 40,
    needs: ['fleet'],
    isShort: false,
    run: async (random, ends, expected, faults) => {
      const clocks = new Clocks();
      const { world } = await fleetWithDatabase(ends, random, 3, {
        ...clocks.settings,
        RELORA_LEASE_SECONDS: '10',
      });
      const jump = async (): Promise<number> => {
        clocks.set(pick(random, world.servers).folder, Math.round((random() * 2 - 1) * 3_600_000));
        return 1;
      };
      const jobs: string[] = [];
      const count = await meanwhile(
        () => wholeWay(world, ends, expected, { onJob: (name) => jobs.push(name) }),
        random,
        { everyMs: 500, faults },
        jump,
      );
      // No server was considered dead.
      for (const job of jobs) expect((await world.client.getJob(job)).attempt).toBe(1);
      return count;
    },
  },
  ...diskScenarios,
  watchers,
  soak,
];
