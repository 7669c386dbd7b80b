import { hasPostgres } from '../server/postgres.js';
import { hasS3 } from '../server/s3.js';
import { canFailDisk } from './failingDisk.js';
import { PostgresPair } from './postgresPair.js';
import type { Random } from './random.js';
import type { Result } from './wholeWay.js';
import { World, type Ends } from './world.js';

/** One trial: throws where a promise is broken, and answers how many faults it made. */
export interface Scenario {
  /** As in the table of the report. */
  name: string;
  what: string;
  /** Faults that the report is to reach. */
  target: number;
  /** Faults of one trial for the report: as many as share what it takes to begin, and few enough that one that falls short loses little. */
  perTrial: number;
  needs: readonly Need[];
  /** Whether the short form, within the tests, has it. */
  isShort: boolean;
  run(random: Random, ends: Ends, expected: Result, faults: number): Promise<number | Measured>;
}

/** Of a trial that measures: what it found, as it is to stand in the report. */
export interface Measured {
  faults: number;
  figures: string;
}

export type Need = 'fleet' | 'disk';

/** What this machine has of it. */
export const had: Readonly<Record<Need, boolean>> = { fleet: hasPostgres && hasS3, disk: canFailDisk };

export function canRun({ needs }: Scenario): boolean {
  return needs.every((need) => had[need]);
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Does something at random moments while jobs go their whole way, one after another until enough was done; gives how often. */
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
