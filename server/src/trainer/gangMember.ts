import type { Logger } from 'pino';
import { RankDoor } from './rankDoor.js';
import { RankProcesses, type RankProcessesParts } from './rankProcesses.js';

export interface GangMemberParts {
  /** The ranks on this machine. */
  ranks: readonly number[];
  /** Options for starting them, given the variables of MPI by rank. */
  processes(environments: ReadonlyMap<number, Record<string, string>>): RankProcessesParts['ranks'];
  /** Called when everything is there and mpirun may start `command`. False if that is no longer wanted. */
  ready(command: string[]): Promise<boolean>;
  log: Logger;
}

/** Ranks of a job that another server leads. The row of the job decides how long they are needed. */
export class GangMember {
  /** Resolves when they are all gone, with whether they were started; never rejects. */
  readonly done: Promise<boolean>;
  private processes: RankProcesses | undefined;
  private giveUp: () => void = () => {};
  private isEnding = false;
  private readonly givenUp = new Promise<null>((resolve) => (this.giveUp = () => resolve(null)));

  constructor(private readonly parts: GangMemberParts) {
    this.done = this.run().catch((error: unknown) => {
      parts.log.error({ err: error }, 'The ranks of a job that another server leads could not be started');
      return false;
    });
  }

  get pids(): (number | undefined)[] {
    return this.processes?.pids ?? [];
  }

  end(): void {
    this.isEnding = true;
    this.giveUp();
    this.processes?.end();
  }

  private async run(): Promise<boolean> {
    const { ranks, log, ready, processes } = this.parts;
    // mpirun ends a rank's place when another rank is gone.
    const door = await RankDoor.open(ranks, () => this.end());
    try {
      if (!(await ready(door.command))) return false;
      const environments = await Promise.race([door.arrived, this.givenUp]);
      if (environments === null || this.isEnding) return false;
      this.processes = new RankProcesses({
        ranks: processes(environments),
        log,
        onLine: () => {}, // they are in the server's log
        onLost: () => this.end(),
        onGone: (rank, end) => door.leave(rank, end),
        byMpi: true,
      });
      await this.processes.gone;
      return true;
    } finally {
      await door.close();
    }
  }
}
