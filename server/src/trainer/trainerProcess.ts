import { fork, type ChildProcess } from 'node:child_process';
import { setPriority } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { Readable } from 'node:stream';
import type { Logger } from 'pino';
import { gibibytes } from '../errors.js';
import { eachLine } from './childLines.js';
import type { Launch } from './confinement.js';
import { heartbeat } from './heartbeat.js';
import { watchMemory } from './memoryWatch.js';
import type { ServerMessage } from './messages.js';
import { readOomKills, whyKilled } from './outOfMemory.js';

/** The program that runs in a child. */
export const trainerEntry = fileURLToPath(new URL('./process/main.js', import.meta.url));

export interface ProcessOptions {
  entry: string;
  /** What is started in front of that program; default: only Node. See confinement.ts. */
  launch?: Launch;
  /** Working folder, so that a core file or a file with a relative path ends up there. */
  folder: string;
  niceValue: number;
  /** Open file that the child gets as `rankMemoryFile`. */
  sharedFile?: number | undefined;
  /** Variables in addition to the inherited ones. */
  environment?: Readonly<Record<string, string>>;
  /** Silence after which the child counts as hung. */
  silenceMs: number;
  /** Time without a turn of its event loop after which even a computing child counts as hung. */
  busyMs: number;
  /** Private memory above which the child is ended; `name` is the setting that limits it. */
  memory: { bytesMax: number; name: string };
  /** Time from SIGTERM to SIGKILL. */
  graceMs: number;
  log: Logger;
  onMessage(message: unknown): void;
  /** Called for each line that it prints; absent if the server's log is enough. */
  onLine?(isError: boolean, line: string): void;
}

/** How a child ended; `what` is a sentence for people. */
export interface ProcessExit {
  code: number | null;
  signal: NodeJS.Signals | null;
  wasOutOfMemory: boolean;
  /** False if the machine refused to start a process at all. */
  wasStarted: boolean;
  what: string;
}

/** The only variables of our environment that a child gets: those that Node, a GPU library and temporary files need, and no credentials. */
const inheritedVariables =
  /^(PATH|HOME|TZ|TMPDIR|LANG|LC_[A-Z]+|LD_LIBRARY_PATH|VIRTUAL_ENV|NODE_PATH|RELORA_NATIVE|CUDA_[A-Z_]+|NVIDIA_[A-Z_]+|TF_[A-Z_]+)$/;
export function inheritedEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => inheritedVariables.test(name)));
}

/**
 * A child process. It gets little of our environment, its output goes to our log, it is ended by SIGTERM and then SIGKILL, and it is given
 * up when its heartbeat is silent for too long. It ends by itself when its channel or the pipe of its heartbeat closes, so it never outlives
 * us.
 */
export class TrainerProcess {
  /** Resolves when the child is gone and its output was read; never rejects. */
  readonly exited: Promise<ProcessExit>;
  private readonly child: ChildProcess | undefined;
  private silenceTimer: NodeJS.Timeout | undefined;
  private busyTimer: NodeJS.Timeout | undefined;
  private killTimer: NodeJS.Timeout | undefined;
  /** Turns of its event loop until it has certainly received what was sent; null if nobody waits for that. */
  private turnsUntilHeard: number | null = null;
  /** Why it was given up. */
  private fault: string | undefined;
  private isGone = false;
  private errorTail = '';
  private endMemoryWatch = (): void => {};
  /** The memory that it used when it was ended for that. */
  private excess: string | undefined;
  private wasKilled = false;
  private readonly oomKillsBefore = readOomKills();

  constructor(private readonly options: ProcessOptions) {
    const { entry, folder, niceValue, log, launch = {} } = options;
    let child: ChildProcess;
    try {
      child = fork(entry, [], {
        cwd: folder,
        env: {
          ...inheritedEnvironment(),
          ...options.environment,
        },
        execArgv: [],
        ...launch,
        // A session of its own: Ctrl-C in the server's terminal is meant for the server, which then stops its children in order.
        detached: true,
        serialization: 'advanced',
        stdio: [
          ...(['ignore', 'pipe', 'pipe', 'ipc', 'pipe'] as const),
          ...(options.sharedFile === undefined ? [] : [options.sharedFile]),
        ],
      });
    } catch (error) {
      this.isGone = true;
      this.exited = Promise.resolve(notStarted(error as Error));
      return;
    }
    this.child = child;
    this.exited = new Promise((resolve) => {
      child.once('error', (error) => {
        // Also emitted if a message cannot be sent; then the exit follows and says more.
        if (child.pid === undefined) resolve(this.gone(notStarted(error)));
      });
      child.once('close', (code, signal) => resolve(this.gone(this.describe(code, signal))));
    });
    (child.stdio[heartbeat.fileDescriptor] as Readable).setEncoding('latin1').on('data', (beats: string) => {
      const hasTurned = beats.includes(heartbeat.turned);
      if (hasTurned || beats.includes(heartbeat.computing)) this.isAlive();
      if (hasTurned) this.hasTurned();
    });
    child.on('message', (message) => {
      this.isAlive();
      if (!this.isGone) options.onMessage(message);
    });
    eachLine(child.stdout, (line) => {
      options.onLine?.(false, line);
      log.info({ stream: 'stdout' }, line);
    });
    eachLine(child.stderr, (line) => {
      options.onLine?.(true, line);
      this.errorTail = `${this.errorTail}\n${line}`.slice(-2048);
      log.warn({ stream: 'stderr' }, line);
    });
    if (child.pid !== undefined) {
      try {
        setPriority(child.pid, niceValue);
      } catch (error) {
        log.warn({ err: error }, 'The priority of the child could not be lowered');
      }
    }
    this.isAlive();
    this.hasTurned();
    if (child.pid !== undefined) this.endMemoryWatch = this.watchMemory(child.pid);
  }

  get pid(): number | undefined {
    return this.child?.pid;
  }

  send(message: ServerMessage): void {
    // A child that is ending closes its channel first; it does not need the message any more.
    if (this.child?.connected === true) this.child.send(message, () => {});
  }

  /** Kills the child after the grace time, whatever it does. */
  killAfterGrace(): void {
    this.killTimer ??= setTimeout(() => this.kill(), this.options.graceMs);
  }

  /** The same, but the grace time begins when the child has finished its computation and received what it was sent. */
  killAfterGraceOnceHeard(): void {
    // The next beat may report a turn from before the message.
    this.turnsUntilHeard ??= 2;
  }

  terminate(): void {
    this.signal('SIGTERM');
    this.killAfterGrace();
  }

  kill(): void {
    this.wasKilled = true;
    this.signal('SIGKILL');
  }

  private signal(signal: NodeJS.Signals): void {
    // Until its error is reported, a child that could not be started has the pid 0 in Node, which to the kernel means our whole process
    // group.
    if (this.child?.pid !== undefined) this.child.kill(signal);
  }

  /** Kills the child at once, without a grace time: growing like this, it would soon leave no memory for others. */
  private watchMemory(pid: number): () => void {
    const { bytesMax, name } = this.options.memory;
    return watchMemory(pid, bytesMax, (bytes) => {
      if (this.isGone) return;
      this.excess = ` because it took ${gibibytes(bytes)} of memory; ${gibibytes(bytesMax)} are allowed (${name})`;
      this.kill();
    });
  }

  private isAlive(): void {
    const { silenceMs } = this.options;
    this.giveUpAfter('silenceTimer', silenceMs, `after ${silenceMs / 1000} s of silence`);
  }

  private hasTurned(): void {
    const { busyMs } = this.options;
    const fault = `after ${busyMs / 1000} s in which it computed and heard nothing`;
    this.giveUpAfter('busyTimer', busyMs, fault);
    if (this.turnsUntilHeard !== null && --this.turnsUntilHeard <= 0 && !this.isGone) this.killAfterGrace();
  }

  private giveUpAfter(timer: 'silenceTimer' | 'busyTimer', afterMs: number, fault: string): void {
    clearTimeout(this[timer]);
    if (this.isGone) return;
    this[timer] = setTimeout(() => {
      // If we ourselves were stopped for a while, the timer fires before waiting beats are read: so wait once more.
      this[timer] = setTimeout(() => this.giveUp(fault), Math.min(heartbeat.intervalMs, afterMs));
    }, afterMs);
  }

  private giveUp(fault: string): void {
    this.fault ??= fault;
    // Not `pid`: that is the server's own key, and a line with a duplicate key is invalid.
    this.options.log.error({ trainerPid: this.pid }, `The child will be ended ${fault}`);
    this.terminate();
  }

  private gone(exit: ProcessExit): ProcessExit {
    this.isGone = true;
    clearTimeout(this.silenceTimer);
    clearTimeout(this.busyTimer);
    clearTimeout(this.killTimer);
    this.endMemoryWatch();
    return exit;
  }

  private describe(code: number | null, signal: NodeJS.Signals | null): ProcessExit {
    const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
    let why = '';
    let wasOutOfMemory = false;
    if (this.excess !== undefined) {
      why = this.excess;
      wasOutOfMemory = true;
    } else if (this.fault !== undefined) why = ` ${this.fault}`;
    else if (/out of memory|bad_alloc/i.test(this.errorTail)) {
      why = ' because memory ran out, as it says itself';
      wasOutOfMemory = true;
    } else if (signal === 'SIGKILL' && !this.wasKilled) {
      const after = readOomKills();
      why = whyKilled(this.oomKillsBefore, after);
      wasOutOfMemory = this.oomKillsBefore !== null && after !== null && after > this.oomKillsBefore;
    }
    return {
      code,
      signal,
      wasOutOfMemory,
      wasStarted: true,
      what: `The trainer ${how}${why}`,
    };
  }
}

function notStarted(error: Error): ProcessExit {
  return {
    code: null,
    signal: null,
    wasOutOfMemory: false,
    wasStarted: false,
    what: `The trainer could not be started (${error.message})`,
  };
}
