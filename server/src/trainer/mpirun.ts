import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { hostname } from 'node:os';
import { promisify } from 'node:util';
import { ConfigInvalid, type Config } from '../config.js';
import type { GangShare } from '../jobs/gangPlaces.js';
import { eachLine } from './childLines.js';
import { inheritedEnvironment } from './trainerProcess.js';

type Family = 'Open MPI' | 'MPICH';
export type MpiSettings = Pick<Config, 'mpirun' | 'mpiFlags'>;

/** Name by which mpirun reaches this machine; null if it takes no part in jobs on several servers. */
export function mpiHostOf({ mpirun, mpiHost }: Pick<Config, 'mpirun' | 'mpiHost'>): string | null {
  return mpirun === '' ? null : mpiHost || hostname();
}

/** Time between SIGTERM, on which mpirun ends its processes on other machines, and SIGKILL. */
const endMs = 5000;
/** Lines of its output that are kept to explain why it ended. */
const lastLinesMax = 5;

/** Throws ConfigInvalid if the program of RELORA_MPIRUN cannot be run or is not a known one. */
export async function requireMpi(settings: MpiSettings): Promise<void> {
  if (settings.mpirun !== '') await familyOf(settings);
}

async function familyOf({ mpirun }: MpiSettings): Promise<Family> {
  let text: string;
  try {
    text = (await promisify(execFile)(mpirun, ['--version'], { env: inheritedEnvironment() })).stdout;
  } catch (error) {
    const why =
      (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'it is not there' : (error as Error).message;
    throw new ConfigInvalid([
      `MPI is missing: RELORA_MPIRUN is ${mpirun}, which cannot be run (${why}). Debian has it in openmpi-bin and in mpich`,
    ]);
  }
  if (/open ?mpi|openrte|prrte/i.test(text)) return 'Open MPI';
  if (/hydra|mpich/i.test(text)) return 'MPICH';
  throw new ConfigInvalid([
    `RELORA_MPIRUN is ${mpirun}, which is mpirun neither of Open MPI nor of MPICH: it says ${JSON.stringify(text.slice(0, 100))}`,
  ]);
}

/** A lost machine is noticed after about half a minute; the system's default is two hours. */
const keepalive = ['time', '10', 'intvl', '5', 'probes', '4'];

/** The arguments of mpirun for the ranks of an attempt. Each share names the command for its server. */
export function mpirunArguments(family: Family, flags: string, shares: readonly GangShare[]): string[] {
  const own = flags.split(' ').filter((flag) => flag !== '');
  const parts = shares.map(({ count, launch }) => ({ count: String(count), ...launch! }));
  const between = (groups: string[][]) =>
    groups.flatMap((group, index) => (index === 0 ? group : [':', ...group]));
  if (family === 'MPICH') {
    // Over a port, because the trainers are not children of what it starts.
    const hosts = parts.map(({ host, count }) => `${host}:${count}`).join(',');
    const groups = parts.map(({ count, command }) => ['-n', count, ...command]);
    return ['-pmi-port', ...own, '-hosts', hosts, ...between(groups)];
  }
  const general = [
    // The server of each machine decides which processors a trainer uses.
    ...['--oversubscribe', '--bind-to', 'none'],
    ...(process.getuid?.() === 0 ? ['--allow-run-as-root'] : []),
    ...Array.from({ length: keepalive.length / 2 }, (_, index) => [
      ...['--mca', `oob_tcp_keepalive_${keepalive[2 * index]!}`, keepalive[2 * index + 1]!],
    ]).flat(),
  ];
  const groups = parts.map(({ host, count, command }) => [
    ...['--host', `${host}:${count}`, '-np', count],
    ...command,
  ]);
  return [...general, ...own, ...between(groups)];
}

/** The mpirun of an attempt, which has the places of its ranks on all machines. */
export class Mpirun {
  /** How it ended, as a sentence; never rejects. */
  readonly ended: Promise<string>;
  private readonly child: ChildProcess;
  private timer: NodeJS.Timeout | undefined;
  private hasEnded = false;

  private constructor(child: ChildProcess, onLine: (line: string) => void) {
    this.child = child;
    let last: string[] = [];
    for (const stream of [child.stdout!, child.stderr!])
      eachLine(stream, (line) => {
        last = [...last, line].slice(-lastLinesMax);
        onLine(line);
      });
    this.ended = new Promise((resolve) => {
      child.once('error', (error) => {
        if (child.pid === undefined) resolve(`mpirun could not be started (${error.message})`);
      });
      child.once('close', (code, signal) => {
        this.hasEnded = true;
        clearTimeout(this.timer);
        const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
        resolve(`mpirun ${how}${last.length === 0 ? '' : `: ${last.join('; ')}`}`);
      });
    });
  }

  static async start(
    settings: MpiSettings,
    shares: readonly GangShare[],
    folder: string,
    onLine: (line: string) => void,
  ): Promise<Mpirun> {
    const { mpirun, mpiFlags } = settings;
    const args = mpirunArguments(await familyOf(settings), mpiFlags, shares);
    const child = spawn(mpirun, args, {
      cwd: folder,
      env: inheritedEnvironment(),
      // As for trainers: Ctrl-C is meant for the server.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return new Mpirun(child, onLine);
  }

  /** Ends mpirun, and with it all places on every machine. */
  end(): void {
    if (this.hasEnded || this.timer !== undefined || this.child.pid === undefined) return;
    this.child.kill('SIGTERM');
    this.timer = setTimeout(() => this.child.kill('SIGKILL'), endMs);
  }
}
