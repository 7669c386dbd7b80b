import { availableParallelism, loadavg } from 'node:os';
import type { Logger } from 'pino';
import { ConfigInvalid } from '../config.js';
import type { Job, JobEvent } from '../jobs/job.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import type { DeviceDescription } from '../trainer/messages.js';
import { TaskFailed, type TaskRunner } from '../trainer/taskRunner.js';
import { ReachedSpeed } from './reachedSpeed.js';

/** How long a failed measurement is left alone. */
const retryMs = 30_000;

/** A measurement beside more other work than this shows what that left over rather than the machine. */
const quietLoadRatio = 0.25;
/** How long a measurement beside other work is taken for the best that can be had. */
const remeasureMs = 60_000;

/** What a measurement has to know of the machine. */
export interface MachineState {
  /** Share of the processors in use over the last minute, 0 to 1; 0 where the system does not say. */
  loadRatio(): number;
  /** Whether jobs run: they are what makes the machine busy. */
  isTraining(): boolean;
}

export function machineLoadRatio(): number {
  return Math.min(1, loadavg()[0]! / availableParallelism());
}

/**
 * What jobs can run on: measured in a child, in the background of the start, and kept. A measurement that was made beside other work,
 * as at the start of a busy machine, is made again once the machine is quieter and no job runs.
 */
export class DeviceCatalog {
  private measured: Promise<readonly DeviceDescription[]> | undefined;
  private failedMs = -Infinity;
  private measuredMs = -Infinity;
  private measuredLoadRatio = 0;
  /** As they came last. */
  private known: readonly DeviceDescription[] = [];
  private readonly reached = new ReachedSpeed();

  constructor(
    private readonly tasks: Pick<TaskRunner, 'describeDevices'>,
    private readonly log: Logger,
    private readonly stopping: AbortSignal,
    private readonly machine: MachineState,
  ) {}

  /** Share of the processors that other work used when the speeds were measured: how far they may lie below the machine's. */
  get loadRatio(): number {
    return this.measuredLoadRatio;
  }

  /** Measures now; throws ConfigInvalid when the settings force instructions that the processor does not have. */
  async requireInstructionSet(): Promise<void> {
    const measured = this.measure();
    this.measured = measured.catch(() => []);
    try {
      await measured;
    } catch (error) {
      this.measured = undefined;
      if (error instanceof TaskFailed && error.reason === ('INSTRUCTION_SET_MISSING' satisfies ServerFailure))
        throw new ConfigInvalid([error.message]);
      // Whatever else it is, the next measurement shows.
    }
  }

  /** The device of `auto` is marked. Empty when devices cannot be measured: jobs are then not refused for want of one. */
  async list(): Promise<readonly DeviceDescription[]> {
    const before = this.measured;
    const isMissing = before === undefined && performance.now() - this.failedMs > retryMs;
    if (isMissing || this.isWorthAnother()) {
      const measured = this.measure().catch((error: unknown) => {
        this.failedMs = performance.now();
        this.measured = before;
        if (!this.stopping.aborted)
          this.log.warn({ err: error }, 'Devices cannot be measured; estimates have no duration');
        return before ?? [];
      });
      this.measured = measured;
    }
    return (await this.measured) ?? [];
  }

  private async measure(): Promise<readonly DeviceDescription[]> {
    this.measuredMs = performance.now();
    // Read before: what is measured makes the machine busy itself.
    this.measuredLoadRatio = this.machine.loadRatio();
    return (this.known = await this.tasks.describeDevices(this.stopping));
  }

  /** Learns from what the steps of a job took. */
  note(job: Job, events: readonly JobEvent[]): void {
    const device = this.known.find(({ backend }) => backend === job.execution?.backend);
    if (device === undefined) return;
    for (const { body } of events) {
      if (body.kind !== 'step' || body.omitted) continue;
      const step = { isFullRank: body.phase !== 'adapter', seconds: body.stepSeconds };
      this.reached.note(job.id, job.spec, device, step);
    }
  }

  /** What steps of jobs took on a device over what its measured speed foresees; undefined while too few were taken. */
  reachedRatio(device: DeviceDescription): number | undefined {
    return this.reached.ratioOn(device);
  }

  /** Whether the present speeds were measured beside other work, and a new measurement would be better. */
  private isWorthAnother(): boolean {
    return (
      this.measured !== undefined &&
      this.measuredLoadRatio > quietLoadRatio &&
      performance.now() - this.measuredMs > remeasureMs &&
      !this.machine.isTraining() &&
      this.machine.loadRatio() < this.measuredLoadRatio / 2
    );
  }
}
