import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { JobState, parseJobSpec, type JobEvent } from '@relora/sdk';
import { describe, expect, test } from 'vitest';
import { childrenOf } from '../faults/processes.js';
import { launchers } from '../mpi.js';
import { hasPostgres } from '../server/postgres.js';
import { fleet, runnerOf, uploaded, weightsOf, type FleetServer } from './serverFleet.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';

const spec = (stepCount: number, replicas: number) =>
  parseJobSpec({
    ...tinySpec(stepCount),
    batch: { ...tinySpec(1).batch, micro_batch_sequence_count: 1 },
    replicas,
  });

const folderUrl = (): string => pathToFileURL(temporaryFolder()).href;

/** Losses by step; for repeated steps the last one. */
function lossesOf(events: readonly JobEvent[]): number[] {
  const losses: number[] = [];
  for (const event of events) if (event.kind === 'step') losses[event.step.step] = event.step.loss;
  return losses;
}

type Client = Awaited<ReturnType<typeof fleet>>['client'];

async function run(
  client: Client,
  job: ReturnType<typeof spec>,
  onEvent: (event: JobEvent, name: string) => void = () => {},
) {
  const { name } = await client.createJob(job);
  const events: JobEvent[] = [];
  for await (const event of client.watch(name)) {
    events.push(event);
    onEvent(event, name);
  }
  return { name, events, losses: lossesOf(events) };
}

/** Process ids of the running job's ranks, by rank: MPI passes each its rank. */
function ranksOf(servers: readonly FleetServer[]): number[] {
  const pids: number[] = [];
  for (const pid of servers.flatMap(({ process: { pid, exitCode } }) =>
    exitCode === null ? childrenOf(pid!) : [],
  )) {
    const rank = /(?:^|\0)(?:OMPI_COMM_WORLD_RANK|PMI_RANK|PMI_ID)=(\d+)/.exec(environmentOf(pid))?.[1];
    if (rank !== undefined) pids[Number(rank)] = pid;
  }
  return pids;
}

function environmentOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/environ`, 'utf8');
  } catch {
    return ''; // it has just ended
  }
}

/** The result of ranks that share the memory of one machine. */
async function shared(stepCount: number, replicas: number) {
  const { client } = await fleet(1, folderUrl(), { RELORA_SLOTS: String(replicas) });
  await uploaded(client);
  const { name, losses } = await run(client, spec(stepCount, replicas));
  return { losses, weights: await weightsOf(client, name) };
}

test.skipIf(!hasPostgres)(
  'an mpirun that starts nothing is ended after the time that the settings say, and the job says what to look at',
  async () => {
    const mpirun = join(temporaryFolder(), 'mpirun');
    const script =
      '#!/bin/sh\n[ "$1" = --version ] && echo "mpirun (Open MPI) 4.1.4" && exit\necho "Who are you?"\nexec sleep 3600\n';
    writeFileSync(mpirun, script, { mode: 0o755 });
    const { client, servers } = await fleet(2, folderUrl(), {
      RELORA_SLOTS: '1',
      RELORA_MPIRUN: mpirun,
      RELORA_MPI_HOST: 'localhost',
      RELORA_MPI_START_SECONDS: '2',
    });
    await uploaded(client);
    const { name } = await client.createJob(spec(10, 2));
    const reasons: string[] = [];
    for await (const event of client.watch(name)) {
      if (event.kind !== 'state') continue;
      reasons.push(event.state.reason);
      if (/it is tried again/.test(event.state.reason)) await client.cancelJob(name);
    }
    expect(reasons.join('\n')).toMatch(
      /mpirun did not start the ranks within 2 s: it must be able to start programs on localhost, localhost without a password; it wrote "Who are you\?"\); it is tried again/,
    );
    const children = () => servers.flatMap(({ process: { pid } }) => childrenOf(pid!));
    await expect.poll(children).toEqual([]);
  },
);

describe.each(launchers)('a job over several servers, by mpirun of $name', ({ command, isMissing }) => {
  const settings = (slots: number) => ({
    RELORA_SLOTS: String(slots),
    RELORA_MPIRUN: command,
    RELORA_MPI_HOST: 'localhost',
  });

  test.skipIf(isMissing || !hasPostgres)('has the bits of ranks on one machine', async () => {
    const [replicas, slots] = [4, 2];
    const wanted = await shared(30, replicas);
    const { client } = await fleet(2, folderUrl(), settings(slots));
    await uploaded(client);
    const { name, events, losses } = await run(client, spec(30, replicas));
    const states = events.flatMap((event) => (event.kind === 'state' ? [event.state] : []));
    expect(states.map(({ to }) => to).at(-1), states.at(-1)?.reason).toBe(JobState.SUCCEEDED);
    // If they differ, the message shows whether the run was resumed.
    const course = states.map(({ to, reason }) => `${to} ${reason}`).join('; ');
    expect(losses, course).toEqual(wanted.losses);
    expect(await weightsOf(client, name)).toBe(wanted.weights);
    expect((await client.getJob(name)).execution!.replicas).toBe(replicas);
  });

  test.skipIf(isMissing || !hasPostgres)(
    'resumes with the same bits after a rank is killed on either machine, and after a server is',
    async () => {
      const { client, servers } = await fleet(3, folderUrl(), {
        ...settings(1),
        RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '20',
      });
      await uploaded(client);
      // After each kill more steps remain than a trainer may be ahead of its server.
      const undisturbed = await run(client, spec(300, 2));
      const kills: unknown[] = [];
      const disturbed = await run(client, spec(300, 2), (event, name) => {
        if (event.kind !== 'checkpoint' || kills.length >= event.attempt) return;
        const whom = ([0, 1, 'server'] as const)[event.attempt - 1];
        if (whom === undefined) return;
        kills.push(whom);
        const pids = ranksOf(servers);
        expect(pids).toHaveLength(2);
        if (whom === 'server') runnerOf(servers, name).process.kill('SIGKILL');
        else process.kill(pids[whom]!, 'SIGKILL');
      });
      expect(kills).toEqual([0, 1, 'server']);
      expect(disturbed.losses).toEqual(undisturbed.losses);
      expect(await weightsOf(client, disturbed.name)).toBe(await weightsOf(client, undisturbed.name));
    },
  );
});
