import { EngineError } from '../../engineError.js';
import type { ReductionType } from '../../plan/words.js';
import { loadNativeAddon, type NativeAddon, type NativeExchange } from './nativeAddon.js';
import { orLost, type Exchange } from '../exchange.js';

/** The launcher determines the MPI library: the process has to use the same one. */
const families = [
  {
    name: 'Open MPI',
    variables: ['OMPI_COMM_WORLD_RANK'],
    libraries: ['libmpi.so.40', 'libmpi.40.dylib'],
    packages: 'libopenmpi3',
  },
  {
    name: 'MPICH',
    // The second one is set if its mpirun is reached through a port.
    variables: ['PMI_RANK', 'PMI_ID'],
    libraries: ['libmpi.so.12', 'libmpich.so.12', 'libmpi.12.dylib'],
    packages: 'libmpich12',
  },
];

/**
 * Set before UCX, over which MPI often communicates, is loaded, unless the user has set them. When UCX hooks into memory calls, it tries
 * them out with `sbrk` (issue 3646 of openucx/ucx), which takes a page of the heap away if another thread allocates at that moment; without
 * the hooks UCX registers memory for each large message. And UCX's handler of fatal signals allocates memory, so that a crashed process may
 * hang instead of ending.
 */
const settingsOfUcx = { UCX_MEM_EVENTS: 'n', UCX_HANDLE_ERRORS: 'none' };

/** Connects processes started by `mpirun` of Open MPI or MPICH, on one or several hosts. */
export class Mpi implements Exchange {
  readonly rank: number;
  readonly size: number;
  readonly overlaps = true;
  private readonly exchange: NativeExchange;
  private isWaiting = false;

  /** Throws EngineError MPI_MISSING if this process was not started by `mpirun`, or if its library cannot be loaded. */
  constructor(
    environment: NodeJS.ProcessEnv = process.env,
    private readonly addon: NativeAddon = loadNativeAddon(),
  ) {
    ({ rank: this.rank, size: this.size, exchange: this.exchange } = join(environment, addon));
    // An exiting process waits for the thread of a pending call, which cannot be canceled; `mpirun` then ends the others.
    process.once('exit', () => {
      if (this.isWaiting) process.kill(process.pid, 'SIGKILL');
    });
  }

  async sum(values: Float32Array, type: ReductionType, written = values.length): Promise<void> {
    await this.waiting(this.addon.exchangeSum(this.exchange, values, type, written));
  }

  reach(count: number): void {
    this.addon.exchangeReach(this.exchange, count);
  }

  abandon(): void {
    this.addon.exchangeAbandon(this.exchange);
  }

  async gather(own: Uint8Array): Promise<Uint8Array> {
    const all = new Uint8Array(this.size * own.length);
    await this.waiting(this.addon.exchangeGather(this.exchange, all, own));
    return all;
  }

  private async waiting(call: Promise<void>): Promise<void> {
    this.isWaiting = true;
    try {
      await orLost(call);
    } finally {
      this.isWaiting = false;
    }
  }

  /** A member that fails must exit: `mpirun` then ends the others, who have no other way to notice. */
  leave(isOver: boolean): void {
    if (isOver) this.addon.exchangeLeave(this.exchange);
  }
}

function join(environment: NodeJS.ProcessEnv, addon: NativeAddon) {
  const family = families.find(({ variables }) => variables.some((name) => environment[name] !== undefined));
  if (family === undefined) {
    const names = families.map(({ variables }) => variables[0]).join(' nor ');
    throw new EngineError('MPI_MISSING', `No mpirun started this process: neither ${names} is set`);
  }
  // In process.env, this sets the variables of the process, which libraries read.
  for (const [name, value] of Object.entries(settingsOfUcx)) environment[name] ??= value;
  const problems: string[] = [];
  for (const library of family.libraries) {
    try {
      return addon.openMpi(library);
    } catch (error) {
      problems.push((error as Error).message);
    }
  }
  const { name, packages } = family;
  throw new EngineError(
    'MPI_MISSING',
    `${name} cannot be loaded (Debian has it in ${packages}): ${problems.join('; ')}`,
  );
}
