import { parseTrainerMessage } from './childMessages.js';
import { TrainerProcess, type ProcessOptions } from './trainerProcess.js';
import type { TrainOrder } from './messages.js';

/** Failure reason of a rank whose run ends because another rank is gone. */
export const lostReason = 'RANK_LOST';

/** Why a rank failed. */
export interface RankFailure {
  reason: string;
  message: string;
}

export interface RankProcessesParts {
  /** Each rank other than the first. */
  ranks: readonly { order: TrainOrder; process: Omit<ProcessOptions, 'onMessage' | 'onLine' | 'log'> }[];
  log: ProcessOptions['log'];
  /** A line that a rank prints, prefixed with its rank. */
  onLine(isError: boolean, line: string): void;
  /** A rank ended before the run was over; the first cannot continue. */
  onLost(what: string): void;
  /** A rank is gone, for whatever reason. */
  onGone?(rank: number, end: { isWell: boolean; what: string }): void;
  /** They communicate through MPI, where no rank notices that another has left. */
  byMpi?: boolean;
}

/**
 * The ranks of a run other than the first, which reports for all. They are processes like the first, with heartbeats and limits of their
 * own. If one ends early, the attempt ends.
 */
export class RankProcesses {
  /** Resolves when all are gone. */
  readonly gone: Promise<void>;
  /** The first failure that one of them reported; failures of others that follow from it are not kept. */
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
        // The first rank notices it in the shared memory, unless this rank failed before using that, or it waits for the card of this rank.
        this.timer ??= setTimeout(() => onLost(failed!), options.graceMs);
      });
      return trainer;
    });
    this.gone = Promise.all(this.processes.map(async ({ exited }) => await exited)).then(() => {});
  }

  get pids(): (number | undefined)[] {
    return this.processes.map(({ pid }) => pid);
  }

  /** The run is over: processes that do not end by themselves are killed. */
  end(): void {
    this.isEnding = true;
    clearTimeout(this.timer);
    for (const each of this.processes) each.kill();
  }
}
