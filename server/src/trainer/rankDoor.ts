import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The program that mpirun starts for each rank. */
export const rankPlaceEntry = fileURLToPath(new URL('./process/rankPlace.js', import.meta.url));

/** What the place of a rank reports: which rank it is, and the variables by which MPI knows it. */
interface Arrival {
  rank: number;
  environment: Record<string, string>;
}

/**
 * Variables of Open MPI and MPICH by which a process finds the others that mpirun started, some with small letters, and those that users set
 * through mpirun for UCX and libfabric, by which MPI communicates.
 */
const ofMpi = /^(OMPI|PMIX|PRTE|ORTE|PMI|MPI|MPIR|HYDI|UCX|FI)_\w+$/;

/**
 * mpirun starts a placeholder process (a place) on this machine for each rank of an attempt. The places report to their server here, and
 * the server starts the trainers: a trainer is a child of the server, watched like all others, and joins MPI in the name of its place. A
 * place ends the way its rank does, which shows mpirun the outcome; if a place is gone, its rank is ended.
 */
export class RankDoor {
  /** The variables of each rank, once all places have reported. Never rejects. */
  readonly arrived: Promise<ReadonlyMap<number, Record<string, string>>>;
  private readonly places = new Map<number, Socket>();
  private readonly environments = new Map<number, Record<string, string>>();
  private onAll: (environments: ReadonlyMap<number, Record<string, string>>) => void = () => {};
  private isClosed = false;

  private constructor(
    private readonly folder: string,
    private readonly server: Server,
    private readonly ranks: ReadonlySet<number>,
    /** Called when a place is gone whose rank had not ended. */
    private readonly onGone: (rank: number) => void,
  ) {
    this.arrived = new Promise((resolve) => (this.onAll = resolve));
    server.on('connection', (socket) => this.receive(socket));
  }

  static async open(ranks: readonly number[], onGone: (rank: number) => void): Promise<RankDoor> {
    // Only the user of the server can reach the socket there, and the path is short enough for one.
    const folder = await mkdtemp(join(tmpdir(), 'relora-ranks-'));
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(join(folder, 'door'), resolve);
    });
    return new RankDoor(folder, server, new Set(ranks), onGone);
  }

  /** The command that mpirun starts here for each rank. */
  get command(): string[] {
    return [process.execPath, rankPlaceEntry, join(this.folder, 'door')];
  }

  /** A rank has ended: so does its place, and mpirun ends the others unless the rank succeeded. */
  leave(rank: number, end: { isWell: boolean; what: string }): void {
    const place = this.places.get(rank);
    this.places.delete(rank);
    place?.end(JSON.stringify(end));
  }

  async close(): Promise<void> {
    if (this.isClosed) return;
    this.isClosed = true;
    for (const place of this.places.values()) place.destroy();
    this.places.clear();
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
    await rm(this.folder, { recursive: true, force: true });
  }

  private receive(socket: Socket): void {
    if (this.isClosed) return void socket.destroy();
    socket.on('error', () => {}); // 'close' follows
    let text = '';
    let rank: number | undefined;
    socket.setEncoding('utf8').on('data', (data: string) => {
      if (rank !== undefined) return;
      text += data;
      if (!text.endsWith('\n')) return;
      const arrival = readArrival(text);
      if (arrival === undefined || !this.ranks.has(arrival.rank) || this.environments.has(arrival.rank))
        return void socket.destroy();
      rank = arrival.rank;
      this.places.set(rank, socket);
      this.environments.set(rank, arrival.environment);
      if (this.environments.size === this.ranks.size) this.onAll(this.environments);
    });
    socket.on('close', () => {
      if (rank !== undefined && this.places.delete(rank) && !this.isClosed) this.onGone(rank);
    });
  }
}

/** Our own program wrote it, but it is checked because it determines a trainer's environment. */
function readArrival(text: string): Arrival | undefined {
  try {
    const { rank, environment } = JSON.parse(text) as Partial<Arrival>;
    if (!Number.isInteger(rank)) return undefined;
    const known = Object.entries(environment ?? {}).filter(
      ([name, value]) => ofMpi.test(name) && typeof value === 'string',
    );
    return { rank: rank!, environment: Object.fromEntries(known) };
  } catch {
    return undefined;
  }
}
