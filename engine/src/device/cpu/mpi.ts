import { EngineError } from '../../engineError.js';
import type { ReductionType } from '../../plan/words.js';
import { loadNativeAddon, type NativeAddon, type NativeExchange } from './nativeAddon.js';
import { orLost, type Exchange } from '../exchange.js';

/** Whoever started this process has a library of its own, which has to be the one that it speaks with. */
const families = [
  {
    name: 'Open MPI',
    variables: ['OMPI_COMM_WORLD_RANK'],
    libraries: ['libmpi.so.40', 'libmpi.40.dylib'],
    packages: 'libopenmpi3',
  },
  {
    name: 'MPICH',
    // The second where its mpirun is reached by a port.
    variables: ['PMI_RANK', 'PMI_ID'],
    libraries: ['libmpi.so.12', 'libmpich.so.12', 'libmpi.12.dylib'],
    packages: 'libmpich12',
  },
];

/** Processes that `mpirun` of Open MPI or MPICH started, on one host or several, reach each other through it. */
export class Mpi implements Exchange {
  readonly rank: number;
  readonly size: number;
  private readonly exchange: NativeExchange;
  private isWaiting = false;

  /** Throws EngineError MPI_MISSING where no `mpirun` started this process, or its library cannot be loaded. */
  constructor(
    environment: NodeJS.ProcessEnv = process.env,
    private readonly addon: NativeAddon = loadNativeAddon(),
  ) {
    ({ rank: this.rank, size: this.size, exchange: this.exchange } = join(environment, addon));
    // A process that ends waits for the thread of a call, and nobody can call that back: `mpirun` ends the others then.
    process.once('exit', () => {
      if (this.isWaiting) process.kill(process.pid, 'SIGKILL');
    });
  }

  async sum(values: Float32Array, type: ReductionType): Promise<void> {
    await this.waiting(this.addon.exchangeSum(this.exchange, values, type));
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

  /** One that fails has to end: `mpirun` then ends the others, who hear of it in no other way. */
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
