import type { Logger } from 'pino';
import type { Job } from '../jobs/job.js';
import type { GangPlaces, GangShare } from '../jobs/gangPlaces.js';
import type { Leases } from '../store/leases.js';
import { Mpirun, type MpiSettings } from './mpirun.js';
import { RankDoor } from './rankDoor.js';

export interface LedGangParts {
  settings: MpiSettings;
  /** Name by which mpirun reaches this machine. */
  host: string;
  places: GangPlaces;
  leases: Leases;
  log: Logger;
  /** Working folder of mpirun. */
  folder: string;
  /** Time within which mpirun must have started the places of the ranks on this machine. */
  startMs: number;
  /** True once the server stops. */
  isGivenUp(): boolean;
}

/** How long servers may take to copy what their ranks read. */
const formingMsMax = 600_000;
/** How often the rows of the other servers are read meanwhile. */
const lookMs = 200;
/** How long mpirun may take to end by itself after the run is over. */
const endMs = 5000;

/** The processes of an attempt on several servers, as seen by the server that leads it: it runs mpirun, and has the first rank. */
export class LedGang {
  private onLost: (what: string) => void = (what) => (this.lost ??= what);
  private onLine: (line: string) => void = (line) => this.early.push(line);
  private lost: string | undefined;
  private readonly early: string[] = [];
  /** Why a rank on another server ended, in its own words, which say more than those of mpirun. */
  private said: string | undefined;
  private isEnding = false;
  private mpirun!: Mpirun;

  private constructor(
    private readonly parts: LedGangParts,
    private readonly shares: readonly GangShare[],
    private readonly door: RankDoor,
    private readonly job: Job,
  ) {}

  /**
   * Resolves when the places of all ranks on this machine have reported. Throws if they cannot be started; nothing is left running then.
   */
  static async form(parts: LedGangParts, job: Job): Promise<{ gang: LedGang; environments: Environments }> {
    const { places, host } = parts;
    const own = (await places.of(job.id, job.attempt)).find(({ firstRank }) => firstRank === 0);
    if (own === undefined) throw new Error('its places on other servers are gone');
    const ranks = Array.from({ length: own.count }, (_, rank) => rank);
    // If a place is gone, mpirun ends the others and reports it.
    const door = await RankDoor.open(ranks, () => {});
    try {
      await places.ready(job.id, job.attempt, { host, command: door.command });
      const gang = new LedGang(parts, await allReady(parts, job), door, job);
      return { gang, environments: await gang.start() };
    } catch (error) {
      await door.close();
      await places.leave(job.id, job.attempt).catch(() => {}); // if this fails, the lease expires soon
      throw error;
    }
  }

  get size(): number {
    return this.shares[0]!.size;
  }

  /** Listens for losses and for the output of mpirun, including what came before this call. */
  listen(onLost: (what: string) => void, onLine: (line: string) => void): void {
    this.onLost = onLost;
    this.onLine = onLine;
    this.early.splice(0).forEach(onLine);
    if (this.lost !== undefined) onLost(this.lost);
  }

  leave(rank: number, end: { isWell: boolean; what: string }): void {
    this.door.leave(rank, end);
  }

  /** The run is over. Resolves when mpirun is gone. */
  async end(): Promise<void> {
    this.isEnding = true;
    const timer = setTimeout(() => this.mpirun.end(), this.lost === undefined ? endMs : 0);
    await this.mpirun.ended;
    clearTimeout(timer);
    await this.door.close();
    await this.parts.places.leave(this.job.id, this.job.attempt).catch(() => {});
  }

  /** A machine that failed reports nothing, and the other ranks would wait forever; but the row of its server shows it. */
  async check(): Promise<void> {
    const missing = await missingShare(this.parts, this.shares);
    if (missing === null || this.isEnding) return;
    this.fail(missing);
    this.mpirun.end();
  }

  private async start(): Promise<Environments> {
    const { settings, folder } = this.parts;
    this.mpirun = await Mpirun.start(settings, this.shares, folder, (line) => {
      if (/^Rank \d+ of \d+/.test(line)) this.said ??= line;
      this.onLine(line);
    });
    const ended = this.mpirun.ended.then((what) => {
      if (!this.isEnding) this.fail(this.said ?? what);
      return what;
    });
    let timer: NodeJS.Timeout | undefined;
    // If it cannot start the program of another machine, mpirun of MPICH waits without end.
    const late = new Promise<string>((resolve) => {
      timer = setTimeout(() => resolve(this.lateness()), this.parts.startMs);
    });
    const first = await Promise.race([this.door.arrived, ended, late]);
    clearTimeout(timer);
    if (typeof first !== 'string') return first;
    this.isEnding = true;
    this.mpirun.end();
    await ended;
    throw new Error(first);
  }

  private lateness(): string {
    const hosts = this.shares.map(({ launch }) => launch!.host).join(', ');
    const said = this.early.length === 0 ? 'nothing' : JSON.stringify(this.early.slice(-5).join('\n'));
    return (
      `mpirun did not start the ranks within ${this.parts.startMs / 1000} s: it must be able to start programs on ${hosts} ` +
      `without a password; it wrote ${said}`
    );
  }

  private fail(what: string): void {
    this.lost ??= what;
    this.onLost(this.lost);
  }
}

/** Variables by which MPI knows each rank of a machine. */
export type Environments = ReadonlyMap<number, Readonly<Record<string, string>>>;

async function allReady(parts: LedGangParts, job: Job): Promise<GangShare[]> {
  const endsAtMs = performance.now() + formingMsMax;
  const shares = await parts.places.of(job.id, job.attempt);
  for (;;) {
    const now = await parts.places.of(job.id, job.attempt);
    if (now.length === shares.length && now.every(({ launch }) => launch !== null)) return now;
    const missing = await missingShare(parts, shares, now);
    if (missing !== null) throw new Error(missing);
    if (parts.isGivenUp()) throw new Error('the server stops');
    if (performance.now() > endsAtMs)
      throw new Error(`other servers did not have what their ranks read within ${formingMsMax / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, lookMs));
  }
}

/** Names the server that is gone or has given up its share; null if there is none or the rows cannot be read. */
async function missingShare(
  { leases }: LedGangParts,
  shares: readonly GangShare[],
  present: readonly GangShare[] = shares,
): Promise<string | null> {
  const living = new Set((await leases.servers())?.map(({ id }) => id));
  for (const { serverId, firstRank, count, size } of shares) {
    const isPresent = present.some((share) => share.serverId === serverId);
    if (isPresent && living.has(serverId)) continue;
    const ranks =
      count === 1
        ? `Rank ${firstRank} of ${size} is`
        : `Ranks ${firstRank} to ${firstRank + count - 1} of ${size} are`;
    return `${ranks} on a server that ${isPresent ? 'is silent' : 'could not start them'} (${serverId})`;
  }
  return null;
}
