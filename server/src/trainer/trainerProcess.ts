import { fork, type ChildProcess } from 'node:child_process';
import { setPriority } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { Readable } from 'node:stream';
import type { Logger } from 'pino';
import type { ServerMessage } from './messages.js';
import { readOomKills, whyKilled } from './outOfMemory.js';

/** The program that runs in a child. */
export const trainerEntry = fileURLToPath(new URL('./process/main.js', import.meta.url));

export interface ProcessOptions {
  entry: string;
  /** Working folder, so that a core file or a stray relative path stays there. */
  folder: string;
  niceValue: number;
  /** Silence after which the child counts as hung. */
  silenceMs: number;
  /** From SIGTERM to SIGKILL. */
  graceMs: number;
  log: Logger;
  onMessage(message: unknown): void;
}

/** How a child ended; `what` is a sentence for people. */
export interface ProcessExit {
  code: number | null;
  signal: NodeJS.Signals | null;
  wasSilent: boolean;
  wasOutOfMemory: boolean;
  /** False when the machine refused to start a process at all. */
  wasStarted: boolean;
  what: string;
}

/** All that a child gets of our environment: what Node, a GPU library and temporary files need, and no credentials. */
const inheritedVariables =
  /^(PATH|HOME|TZ|TMPDIR|LANG|LC_[A-Z]+|LD_LIBRARY_PATH|NODE_PATH|NODE_EXTRA_CA_CERTS|CUDA_[A-Z_]+|NVIDIA_[A-Z_]+|TF_[A-Z_]+)$/;
/** Longest line of a child's output; longer ones are cut. */
const logLineLengthMax = 4096;

/**
 * A child process: started with little of our environment, its output in our log, ended by SIGTERM and then SIGKILL, and
 * given up when it is silent for too long. It ends by itself when its channel to us closes, so it never outlives us.
 */
export class TrainerProcess {
  /** Resolves when the child is gone and its output was read; never rejects. */
  readonly exited: Promise<ProcessExit>;
  private readonly child: ChildProcess | undefined;
  private silenceTimer: NodeJS.Timeout | undefined;
  private killTimer: NodeJS.Timeout | undefined;
  private wasSilent = false;
  private isGone = false;
  private errorTail = '';
  private wasKilled = false;
  private readonly oomKillsBefore = readOomKills();

  constructor(private readonly options: ProcessOptions) {
    const { entry, folder, niceValue, log } = options;
    let child: ChildProcess;
    try {
      child = fork(entry, [], {
        cwd: folder,
        env: Object.fromEntries(
          Object.entries(process.env).filter(([name]) => inheritedVariables.test(name)),
        ),
        execArgv: [],
        // A session of its own: Ctrl-C in the server's terminal is for the server, which then stops its children in order.
        detached: true,
        serialization: 'advanced',
        stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      });
    } catch (error) {
      this.isGone = true;
      this.exited = Promise.resolve(notStarted(error as Error));
      return;
    }
    this.child = child;
    this.exited = new Promise((resolve) => {
      child.once('error', (error) => {
        // Also emitted when a message cannot be sent; then the exit follows and tells more.
        if (child.pid === undefined) resolve(this.gone(notStarted(error)));
      });
      child.once('close', (code, signal) => resolve(this.gone(this.describe(code, signal))));
    });
    child.on('message', (message) => {
      this.heard();
      if (!this.isGone) options.onMessage(message);
    });
    this.pipe(child.stdout, (line) => log.info({ stream: 'stdout' }, line));
    this.pipe(child.stderr, (line) => {
      this.errorTail = `${this.errorTail}\n${line}`.slice(-2048);
      log.warn({ stream: 'stderr' }, line);
    });
    if (child.pid !== undefined) {
      try {
        setPriority(child.pid, niceValue);
      } catch (error) {
        log.warn({ error: String(error) }, 'The priority of the child could not be lowered');
      }
    }
    this.heard();
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

  terminate(): void {
    this.child?.kill('SIGTERM');
    this.killAfterGrace();
  }

  kill(): void {
    this.wasKilled = true;
    this.child?.kill('SIGKILL');
  }

  private heard(): void {
    clearTimeout(this.silenceTimer);
    if (this.isGone) return;
    this.silenceTimer = setTimeout(() => {
      // When we ourselves were stopped for a while, the timer fires before waiting messages are read: look again first.
      this.silenceTimer = setTimeout(() => this.giveUp(), Math.min(1000, this.options.silenceMs));
    }, this.options.silenceMs);
  }

  private giveUp(): void {
    this.wasSilent = true;
    this.options.log.error(
      { pid: this.pid, silenceMs: this.options.silenceMs },
      'The child is silent and will be ended',
    );
    this.terminate();
  }

  private gone(exit: ProcessExit): ProcessExit {
    this.isGone = true;
    clearTimeout(this.silenceTimer);
    clearTimeout(this.killTimer);
    return exit;
  }

  private describe(code: number | null, signal: NodeJS.Signals | null): ProcessExit {
    const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
    let why = '';
    let wasOutOfMemory = false;
    if (this.wasSilent) why = ` after ${this.options.silenceMs / 1000} s of silence`;
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
      wasSilent: this.wasSilent,
      wasOutOfMemory,
      wasStarted: true,
      what: `The trainer ${how}${why}`,
    };
  }

  /** Writes a stream line by line. A line without an end is cut, so that a flood of bytes is never held. */
  private pipe(stream: Readable | null, write: (line: string) => void): void {
    let rest = '';
    stream?.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      if (rest.length > logLineLengthMax) {
        lines.push(rest);
        rest = '';
      }
      for (const line of lines) write(line.slice(0, logLineLengthMax));
    });
    stream?.on('end', () => {
      if (rest !== '') write(rest);
    });
  }
}

function notStarted(error: Error): ProcessExit {
  return {
    code: null,
    signal: null,
    wasSilent: false,
    wasOutOfMemory: false,
    wasStarted: false,
    what: `The trainer could not be started (${error.message})`,
  };
}
