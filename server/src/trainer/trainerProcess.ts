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
  /** What is started before that program; by default Node alone. See confinement.ts. */
  launch?: Launch;
  /** Working folder, so that a core file or a stray relative path stays there. */
  folder: string;
  niceValue: number;
  /** Open file that it gets as `rankMemoryFile`. */
  sharedFile?: number | undefined;
  /** Variables beside those that it inherits. */
  environment?: Readonly<Record<string, string>>;
  /** Silence after which the child counts as hung. */
  silenceMs: number;
  /** Time without a turn of its event loop after which a child that computes counts as hung too. */
  busyMs: number;
  /** Memory of its own above which the child is ended; `name` is the setting or limit that says so. */
  memory: { bytesMax: number; name: string };
  /** From SIGTERM to SIGKILL. */
  graceMs: number;
  log: Logger;
  onMessage(message: unknown): void;
  /** What it prints, line by line; absent where the server's log is enough. */
  onLine?(isError: boolean, line: string): void;
}

/** How a child ended; `what` is a sentence for people. */
export interface ProcessExit {
  code: number | null;
  signal: NodeJS.Signals | null;
  wasOutOfMemory: boolean;
  /** False when the machine refused to start a process at all. */
  wasStarted: boolean;
  what: string;
}

/** All that a child gets of our environment: what Node, a GPU library and temporary files need, and no credentials. */
const inheritedVariables =
  /^(PATH|HOME|TZ|TMPDIR|LANG|LC_[A-Z]+|LD_LIBRARY_PATH|VIRTUAL_ENV|NODE_PATH|RELORA_NATIVE|CUDA_[A-Z_]+|NVIDIA_[A-Z_]+|TF_[A-Z_]+)$/;
export function inheritedEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => inheritedVariables.test(name)));
}

/**
 * A child process: started with little of our environment, its output in our log, ended by SIGTERM and then SIGKILL, and
 * given up when its heartbeat is silent for too long. It ends by itself when its channel to us closes, so it never outlives us.
 */
export class TrainerProcess {
  /** Resolves when the child is gone and its output was read; never rejects. */
  readonly exited: Promise<ProcessExit>;
  private readonly child: ChildProcess | undefined;
  private silenceTimer: NodeJS.Timeout | undefined;
  private busyTimer: NodeJS.Timeout | undefined;
  private killTimer: NodeJS.Timeout | undefined;
  /** Turns of its event loop until it has surely heard what was sent; null when nobody waits for that. */
  private turnsUntilHeard: number | null = null;
  /** Why it was given up. */
  private fault: string | undefined;
  private isGone = false;
  private errorTail = '';
  private endMemoryWatch = (): void => {};
  /** What it took when it was ended for it. */
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
        // A session of its own: Ctrl-C in the server's terminal is for the server, which then stops its children in order.
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
        // Also emitted when a message cannot be sent; then the exit follows and says more.
        if (child.pid === undefined) resolve(this.gone(notStarted(error)));
      });
      child.once('close', (code, signal) => resolve(this.gone(this.describe(code, signal))));
    });
    (child.stdio[heartbeat.fileDescriptor] as Readable).setEncoding('latin1').on('data', (beats: string) => {
      this.isAlive();
      if (beats.includes(heartbeat.turned)) this.hasTurned();
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
    // A child that is going away closes its channel first; what it would have heard no longer matters.
    if (this.child?.connected === true) this.child.send(message, () => {});
  }

  /** Ends the child at last after the grace time, whatever it does. */
  killAfterGrace(): void {
    this.killTimer ??= setTimeout(() => this.kill(), this.options.graceMs);
  }

  /** The same, but the grace time begins when the child has come out of what it computes and heard what it was sent. */
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
    // A child that could not be started has the pid 0 inside of Node until its error is reported: to the kernel that is our
    // whole group.
    if (this.child?.pid !== undefined) this.child.kill(signal);
  }

  /** At once, without a grace time: what grows like this leaves nobody else any memory. */
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
      // When we ourselves were stopped for a while, the timer fires before waiting beats are read: look again first.
      this[timer] = setTimeout(() => this.giveUp(fault), Math.min(heartbeat.intervalMs, afterMs));
    }, afterMs);
  }

  private giveUp(fault: string): void {
    this.fault ??= fault;
    // Not `pid`: that key is the server's own, and a line with it twice is none that can be read.
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
