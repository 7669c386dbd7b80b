import type { Logger } from 'pino';
import type { Job } from '../jobs/job.js';
import type { GangPlaces, GangShare } from '../jobs/gangPlaces.js';
import type { Leases } from '../store/leases.js';
import { Mpirun, type MpiSettings } from './mpirun.js';
import { RankDoor } from './rankDoor.js';

export interface LedGangParts {
  settings: MpiSettings;
  /** By which mpirun reaches this machine. */
  host: string;
  places: GangPlaces;
  leases: Leases;
  log: Logger;
  /** Working folder of mpirun. */
  folder: string;
  /** True once the server stops. */
  isGivenUp(): boolean;
}

/** So long servers have to stage what their ranks read. */
const formingMsMax = 600_000;
/** How often the rows of the others are read meanwhile. */
const lookMs = 200;
/** mpirun of a run that is over ends by itself. */
const endMs = 5000;

/** The processes of an attempt on several servers, as the one that leads it sees them: it runs mpirun, and has the first rank. */
export class LedGang {
  private onLost: (what: string) => void = (what) => (this.lost ??= what);
  private onLine: (line: string) => void = (line) => this.early.push(line);
  private lost: string | undefined;
  private readonly early: string[] = [];
  /** What a rank elsewhere said of its end, which says more than that of mpirun. */
  private said: string | undefined;
  private isEnding = false;
  private mpirun!: Mpirun;

  private constructor(
    private readonly parts: LedGangParts,
    private readonly shares: readonly GangShare[],
    private readonly door: RankDoor,
    private readonly job: Job,
  ) {}

  /** Resolves when the places of all ranks of this machine are there. Throws where they cannot be had; nothing is left then. */
  static async form(parts: LedGangParts, job: Job): Promise<{ gang: LedGang; environments: Environments }> {
    const { places, host } = parts;
    const own = (await places.of(job.id, job.attempt)).find(({ firstRank }) => firstRank === 0);
    if (own === undefined) throw new Error('its places on other servers are gone');
    const ranks = Array.from({ length: own.count }, (_, rank) => rank);
    // mpirun ends the others where one is gone, and says so.
    const door = await RankDoor.open(ranks, () => {});
    try {
      await places.ready(job.id, job.attempt, { host, command: door.command });
      const gang = new LedGang(parts, await allReady(parts, job), door, job);
      return { gang, environments: await gang.start() };
    } catch (error) {
      await door.close();
      await places.leave(job.id, job.attempt).catch(() => {}); // the lease says the same soon
      throw error;
    }
  }

  get size(): number {
    return this.shares[0]!.size;
  }

  /** Hears of what is lost, and what mpirun prints; also of what came before. */
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

  /** A machine that is gone says nothing, and its ranks wait for ever; its server's row shows it. */
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
    const first = await Promise.race([this.door.arrived, ended]);
    if (typeof first === 'string') throw new Error(first);
    return first;
  }

  private fail(what: string): void {
    this.lost ??= what;
    this.onLost(this.lost);
  }
}

/** Of each rank of a machine, the variables by which MPI knows it. */
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

/** Says of whose share the server is gone, or has given it up, where its rows are known; null where none is. */
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
