import { ReloraError } from '@relora/sdk';
import { launchers } from '../mpi.js';
import { hasPostgres } from '../server/postgres.js';
import { hasS3 } from '../server/s3.js';
import { canFailDisk } from './failingDisk.js';
import { canMakeHosts } from './hosts.js';
import { PostgresPair } from './postgresPair.js';
import type { Random } from './random.js';
import type { Insist, Result } from './wholeWay.js';
import { World, type Ends } from './world.js';

/** One trial: throws if a guarantee is broken, and returns the number of faults that it made. */
export interface Scenario {
  /** As in the report's table. */
  name: string;
  what: string;
  /** Number of faults that the report should reach. */
  target: number;
  /** Faults per trial for the report: enough to share the cost of the setup, and few enough that a failed trial loses little. */
  perTrial: number;
  needs: readonly Need[];
  /** Whether it is in the short form, among the tests. */
  isShort: boolean;
  run(random: Random, ends: Ends, expected: Result, faults: number): Promise<number | Measured>;
}

/** For a trial that measures: its findings, as text for the report. */
export interface Measured {
  faults: number;
  figures: string;
}

export type Need = 'fleet' | 'disk' | 'hosts';

/** What is available on this machine. */
export const had: Readonly<Record<Need, boolean>> = {
  fleet: hasPostgres && hasS3,
  disk: canFailDisk,
  hosts: hasPostgres && canMakeHosts && launchers.some(({ isMissing }) => !isMissing),
};

export function canRun({ needs }: Scenario): boolean {
  return needs.every((need) => had[need]);
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * Calls `act` at random moments while jobs go their whole way, one after another until it was called often enough; returns the number of
 * calls.
 */
export async function meanwhile(
  way: () => Promise<unknown>,
  random: Random,
  { everyMs, faults }: { everyMs: number; faults: number },
  fault: () => Promise<number>,
): Promise<number> {
  let isDone = false;
  let count = 0;
  const disturbing = (async () => {
    while (!isDone && count < faults) {
      await pause(2 * everyMs * random());
      if (!isDone) count += await fault();
    }
  })();
  try {
    do await way();
    while (count < faults);
  } finally {
    isDone = true;
    await disturbing;
  }
  return count;
}

export async function fleetWithDatabase(
  ends: Ends,
  random: Random,
  count: number,
  settings: Record<string, string> = {},
): Promise<{ world: World; postgres: PostgresPair }> {
  const postgres = await PostgresPair.start();
  ends.push(async () => await postgres.stop());
  return { world: await World.fleet(ends, random, count, postgres, settings), postgres };
}

/** Repeats a request until it succeeds, or fails with an error that does not pass. */
export function insistWhere(isPassing: (error: ReloraError) => boolean): Insist {
  return async (what) => {
    for (;;) {
      try {
        return await what();
      } catch (error) {
        if (!(error instanceof ReloraError) || !isPassing(error)) throw error;
        await pause(200);
      }
    }
  };
}
