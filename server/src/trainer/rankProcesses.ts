import { parseTrainerMessage } from './childMessages.js';
import { TrainerProcess, type ProcessOptions } from './trainerProcess.js';
import type { TrainOrder } from './messages.js';

/** What a rank says of itself when another is gone. */
export const lostReason = 'RANK_LOST';

/** Why a rank ended its part. */
export interface RankFailure {
  reason: string;
  message: string;
}

export interface RankProcessesParts {
  /** Of each rank beside the first. */
  ranks: readonly { order: TrainOrder; process: Omit<ProcessOptions, 'onMessage' | 'onLine' | 'log'> }[];
  log: ProcessOptions['log'];
  /** What a rank prints, with the rank before it. */
  onLine(isError: boolean, line: string): void;
  /** A rank is gone before the run was over; the first cannot continue. */
  onLost(what: string): void;
  /** One is gone, however. */
  onGone?(rank: number, end: { isWell: boolean; what: string }): void;
  /** They reach each other through MPI, where none learns that another has left. */
  byMpi?: boolean;
}

/**
 * The ranks of a run beside the first, which alone speaks for it: processes like that one, with their own signs of life and their own
 * bounds. One that ends before its time ends the attempt.
 */
export class RankProcesses {
  /** Resolves when all are gone. */
  readonly gone: Promise<void>;
  /** The first failure that one of them named; what followed from it in others is not kept. */
  failure: RankFailure | undefined;
  private readonly processes: TrainerProcess[];
  private isEnding = false;
  private timer: NodeJS.Timeout | undefined;

  constructor({ ranks, log, onLine, onLost, onGone, byMpi = false }: RankProcessesParts) {
    this.processes = ranks.map(({ order, process: options }) => {
      const { rank, size } = order.member!;
      const name = `Rank ${rank} of ${size}`;
      let failed: string | undefined;
      const trainer: TrainerProcess = new TrainerProcess({
        ...options,
        log: log.child({ rank }),
        onMessage: (raw) => {
          const message = parseTrainerMessage(raw);
          if (message?.type !== 'failed') return;
          failed = `${name}: ${message.message}`;
          if (message.reason !== lostReason) this.failure ??= { reason: message.reason, message: failed };
          trainer.send({ type: 'ack', number: message.number });
        },
        onLine: (isError, line) => onLine(isError, `[rank ${rank}] ${line}`),
      });
      trainer.send({ type: 'train', order });
      void trainer.exited.then(({ code, what }) => {
        const isWell = code === 0 && failed === undefined;
        const how = failed ?? what.replace('The trainer', name);
        onGone?.(rank, { isWell, what: how });
        if (this.isEnding || isWell) return;
        if (failed === undefined || byMpi) return onLost(how);
        // The first rank hears of it from the others' memory, unless this one came to it too early.
        this.timer ??= setTimeout(() => onLost(failed!), options.graceMs);
      });
      return trainer;
    });
    this.gone = Promise.all(this.processes.map(async ({ exited }) => await exited)).then(() => {});
  }

  get pids(): (number | undefined)[] {
    return this.processes.map(({ pid }) => pid);
  }

  /** The run is over: what has not ended by itself is killed. */
  end(): void {
    this.isEnding = true;
    clearTimeout(this.timer);
    for (const each of this.processes) each.kill();
  }
}
