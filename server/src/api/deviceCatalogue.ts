import type { Logger } from 'pino';
import { ConfigInvalid } from '../config.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import type { DeviceDescription } from '../trainer/messages.js';
import { TaskFailed, type TaskRunner } from '../trainer/taskRunner.js';

/** How long a failed measurement is left alone. */
const retryMs = 30_000;

/** What jobs can run on: measured once, in a child, in the background of the start, and kept. */
export class DeviceCatalogue {
  private measured: Promise<readonly DeviceDescription[]> | undefined;
  private failedMs = -Infinity;

  constructor(
    private readonly tasks: Pick<TaskRunner, 'describeDevices'>,
    private readonly log: Logger,
    private readonly stopping: AbortSignal,
  ) {}

  /** Measures now; throws ConfigInvalid when the settings force instructions that the processor does not have. */
  async requireInstructionSet(): Promise<void> {
    const measured = this.tasks.describeDevices(this.stopping);
    this.measured = measured.catch(() => []);
    try {
      await measured;
    } catch (error) {
      this.measured = undefined;
      if (error instanceof TaskFailed && error.reason === ('INSTRUCTION_SET_MISSING' satisfies ServerFailure))
        throw new ConfigInvalid([error.message]);
      // Whatever else it is, the next measurement tells.
    }
  }

  /** The device of `auto` is marked. Empty when devices cannot be measured: jobs are then not refused for want of one. */
  async list(): Promise<readonly DeviceDescription[]> {
    if (this.measured === undefined && performance.now() - this.failedMs > retryMs) {
      const measured = this.tasks.describeDevices(this.stopping).catch((error: unknown) => {
        this.failedMs = performance.now();
        this.measured = undefined;
        if (!this.stopping.aborted)
          this.log.warn({ err: error }, 'Devices cannot be measured; estimates have no duration');
        return [];
      });
      this.measured = measured;
    }
    return (await this.measured) ?? [];
  }
}
