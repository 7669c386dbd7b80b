import type { Logger } from 'pino';
import { RankDoor } from './rankDoor.js';
import { RankProcesses, type RankProcessesParts } from './rankProcesses.js';

export interface GangMemberParts {
  /** Of this machine. */
  ranks: readonly number[];
  /** What is needed to start them, by rank and the variables of MPI. */
  processes(environments: ReadonlyMap<number, Record<string, string>>): RankProcessesParts['ranks'];
  /** Everything is there: mpirun may start what `command` says. False where nobody waits for it any more. */
  ready(command: string[]): Promise<boolean>;
  log: Logger;
}

/** Ranks of a job that another server leads. Whether they are needed still, the row of the job says. */
export class GangMember {
  /** Resolves when nothing of them is left, with whether they were started; never rejects. */
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
    // A place that is gone was ended by mpirun, since another rank is gone.
    const door = await RankDoor.open(ranks, () => this.end());
    try {
      if (!(await ready(door.command))) return false;
      const environments = await Promise.race([door.arrived, this.givenUp]);
      if (environments === null || this.isEnding) return false;
      this.processes = new RankProcesses({
        ranks: processes(environments),
        log,
        onLine: () => {}, // the server's log has it
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
