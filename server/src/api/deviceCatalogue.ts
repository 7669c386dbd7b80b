import type { Logger } from 'pino';
import type { DeviceDescription } from '../trainer/messages.js';
import type { TaskRunner } from '../trainer/taskRunner.js';

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
