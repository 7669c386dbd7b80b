import type { ReloraError } from '@relora/sdk';
import { failingDisk, type DiskMode } from './failingDisk.js';
import { fleetWithDatabase, had, insistWhere, meanwhile, pause, type Scenario } from './scenario.js';
import { wholeWay } from './wholeWay.js';
import { World, type Ends } from './world.js';

/** Errors that clients get when a disk of the server fails. */
const ofDisk: ReadonlySet<string> = new Set([
  'DISK_FULL',
  'DISK_BROKEN',
  'FOLDER_UNWRITABLE',
  'STORAGE_FULL',
  'STORAGE_UNWRITABLE',
  'STORAGE_BROKEN',
  // Torn writes ended its process twice: it must be requested again.
  'TASK_CRASHED',
]);

/** Errors that the SDK would retry by itself, but that last longer with such a disk. */
const isConnectionFault = ({ code }: ReloraError): boolean =>
  code === 'UNAVAILABLE' || code === 'DEADLINE_EXCEEDED';

/** Waits until the disk has been repaired, and repeats the request; a server that ended is being started. */
export const insist = insistWhere((error) => ofDisk.has(error.reason) || isConnectionFault(error));

/** How many of a thousand calls fail, and for how long; a single torn write is enough. */
const shares: Readonly<Record<Exclude<DiskMode, 'sound'>, { permille: number; mostMs: number }>> = {
  full: { permille: 1000, mostMs: 1500 },
  readOnly: { permille: 1000, mostMs: 1500 },
  broken: { permille: 20, mostMs: 1500 },
  torn: { permille: 50, mostMs: 500 },
};

function diskScenario(
  name: string,
  mode: Exclude<DiskMode, 'sound'>,
  what: string,
  isShort = false,
): Scenario {
  return {
    name: `disk-${name}`,
    what,
    target: 100,
    perTrial: 25,
    needs: ['disk'],
    isShort,
    run: async (random, ends: Ends, expected, faults) => {
      const disk = failingDisk();
      ends.push(() => disk.close());
      // Either the store in a file, or the folder in which servers of a fleet stage their work.
      const isAlone = !had.fleet || random() < 0.5;
      const world = isAlone
        ? await World.alone(ends, disk.settings)
        : (await fleetWithDatabase(ends, random, 1, disk.settings)).world;
      world.connect(5000); // shorter than the server's retry delay, so that `insist` decides
      world.mayEnd = true;
      ends.push(() => disk.set('sound'));
      const { permille, mostMs } = shares[mode];
      const fail = async (): Promise<number> => {
        const before = disk.count;
        disk.set(mode, permille);
        await pause(mostMs * random());
        disk.set('sound');
        return disk.count > before ? 1 : 0;
      };
      return await meanwhile(
        () => wholeWay(world, ends, expected, { insist }),
        random,
        { everyMs: 1500, faults },
        fail,
      );
    },
  };
}

export const diskScenarios: Scenario[] = [
  diskScenario('full', 'full', 'the disk of a server is full, of one with a file or of one of several'),
  diskScenario('readonly', 'readOnly', 'its file system is read-only'),
  diskScenario('eio', 'broken', 'one of fifty calls to open, read, write or sync a file fails with EIO'),
  diskScenario(
    'torn',
    'torn',
    'a process of the server dies in the middle of a write, of which the first bytes arrive',
    true,
  ),
];
