import { availableParallelism, loadavg } from 'node:os';
import { runSeconds, spanOf, type DeviceSpeed, type RunSpec } from '@relora/engine/plan';
import type { Logger } from 'pino';
import { ConfigInvalid, type Config } from '../config.js';
import type { Job, JobEvent } from '../jobs/job.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import type { ReachedSpeedStore } from '../store/reachedSpeedStore.js';
import type { DeviceDescription } from '../jobs/jobDevices.js';
import type { DeviceProblem, FoundDevices } from '../trainer/messages.js';
import type { KnownDevices } from '../trainer/slots.js';
import { TaskFailed, type TaskRunner } from '../trainer/taskRunner.js';
import { version } from '../version.js';
import { ReachedSpeed, type Reached } from './reachedSpeed.js';

/** The most steps of one span that count as single measurements. */
const spanStepsMax = 100;
/** Pause after a failed measurement. */
const retryMs = 30_000;

/** Above this load from other work, a measurement shows the capacity that was left rather than the machine. */
const quietLoadRatio = 0.25;
/** How long to wait after a measurement under load before trying again. */
const remeasureMs = 60_000;

/** Time between two writes of the reached speeds, so that fast steps do not keep the store busy. */
const savePauseMs = 10_000;

/** What a measurement needs to know about the machine. */
export interface MachineState {
  /** Share of the processors in use over the last minute, 0 to 1; 0 where the system does not say. */
  loadRatio(): number;
  /** Executions of jobs: those running now, and all that were begun so far. */
  trainings(): { running: number; begun: number };
}

export function machineLoadRatio(): number {
  return Math.min(1, loadavg()[0]! / availableParallelism());
}

/**
 * What jobs can run on: measured in a child, in the background of the start, and kept. A measurement under load, as on a busy machine, is
 * repeated once the machine is quieter and no job runs.
 */
export class DeviceCatalog implements KnownDevices {
  private measured: Promise<readonly DeviceDescription[]> | undefined;
  private failedMs = -Infinity;
  private measuredMs = -Infinity;
  private measuredLoadRatio = 0;
  /** The result of the last measurement. */
  private known: FoundDevices | undefined;
  private readonly foundListeners = new Set<() => void>();
  private isCompiled = false;
  private readonly reached = new ReachedSpeed();
  /** The job that ran alone when its last events came, and how many executions had been begun by then. */
  private aloneSince: { jobId: string; begun: number } | undefined;
  /** Devices with steps that are not stored yet. */
  private readonly unsaved = new Set<string>();
  private savedMs = -Infinity;

  constructor(
    private readonly tasks: Pick<TaskRunner, 'describeDevices' | 'compileKernels'>,
    private readonly log: Logger,
    private readonly stopping: AbortSignal,
    private readonly machine: MachineState,
    private readonly store: Pick<ReachedSpeedStore, 'read' | 'write'>,
    /** The devices of the other servers of the store. */
    readonly elsewhere: () => Promise<readonly DeviceDescription[]> = async () => [],
  ) {}

  /** Loads the speeds that jobs reached before the server was started. */
  async restore(): Promise<void> {
    this.reached.restore(await this.store.read());
  }

  /**
   * Stores the speeds that jobs reached since the last write, unless that was a moment ago. They only improve estimates: training neither
   * waits for this nor fails with it.
   */
  async save({ isLast = false } = {}): Promise<void> {
    if (this.unsaved.size === 0 || (!isLast && performance.now() - this.savedMs < savePauseMs)) return;
    this.savedMs = performance.now();
    const rows = [...this.unsaved].flatMap((device) => this.reached.row(device) ?? []);
    this.unsaved.clear();
    try {
      for (const row of rows) await this.store.write(row);
    } catch (err) {
      this.log.warn({ err }, 'The speeds that jobs reached cannot be stored');
    }
  }

  /** Share of the processors that other work used during the measurement, which is how much too low the measured speeds may be. */
  get loadRatio(): number {
    return this.measuredLoadRatio;
  }

  /** The last result, without a new measurement. */
  get lastMeasured(): readonly DeviceDescription[] {
    return this.known?.devices ?? [];
  }

  /** Calls the listener each time that devices were found. */
  onFound(listener: () => void): void {
    this.foundListeners.add(listener);
  }

  /** Starts a new measurement if the last one failed: jobs wait for it. */
  devices(): readonly DeviceDescription[] | null {
    if (this.known === undefined && !this.stopping.aborted) void this.list();
    return this.known?.devices ?? null;
  }

  cards(): readonly DeviceDescription[] | null {
    return this.known?.devices.filter(({ backend }) => backend === 'cuda') ?? null;
  }

  /** Where the native code comes from; empty until it was loaded. */
  nativeCode(): string {
    return this.known?.native ?? '';
  }

  libraries(): readonly string[] {
    return this.known?.libraries ?? [];
  }

  nccl(): string | null {
    return this.known?.nccl ?? null;
  }

  problems(): readonly DeviceProblem[] {
    return this.known?.problems ?? [];
  }

  /** Measures again: a card that failed may be gone. */
  lookAgain(): void {
    this.measured = undefined;
    this.failedMs = -Infinity;
    void this.list();
  }

  /** Measures now; throws ConfigInvalid if the settings require a device, a folder or instructions that do not exist. */
  async requireForced({ device, cudaFolder }: Pick<Config, 'device' | 'cudaFolder'>): Promise<void> {
    const measured = this.measure();
    this.measured = measured.catch(() => []);
    try {
      const { devices, problems } = await measured.then(() => this.known!);
      const forced = cudaFolder !== null ? 'cuda' : device;
      const problem = problems.find(({ backend }) => backend === forced);
      if (problem !== undefined && !devices.some(({ backend }) => backend === forced)) {
        const setting =
          cudaFolder !== null ? `RELORA_CUDA_FOLDER is ${cudaFolder}` : `RELORA_DEVICE is ${device}`;
        throw new ConfigInvalid([`${setting}, but ${problem.message}`]);
      }
    } catch (error) {
      if (error instanceof ConfigInvalid) throw error;
      this.measured = undefined;
      if (error instanceof TaskFailed && error.reason === ('INSTRUCTION_SET_MISSING' satisfies ServerFailure))
        throw new ConfigInvalid([error.message]);
      // The next measurement shows any other problem.
    }
  }

  /** The device that `auto` means is marked. Empty if devices cannot be measured: jobs are then not refused for lack of one. */
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
    // Read before the measurement, which keeps the machine busy itself.
    this.measuredLoadRatio = this.machine.loadRatio();
    this.known = await this.tasks.describeDevices(this.stopping);
    for (const listener of this.foundListeners) listener();
    this.compileKernels();
    return this.known.devices;
  }

  /** Nobody waits for this: a trainer compiles for itself what is not compiled yet. */
  private compileKernels(): void {
    if (this.isCompiled || this.cards()!.length === 0) return;
    this.isCompiled = true;
    this.tasks.compileKernels(this.stopping).catch((error: unknown) => {
      this.isCompiled = false;
      if (!this.stopping.aborted) this.log.warn({ err: error }, 'The kernels of cards could not be compiled');
    });
  }

  /** Learns from the duration of a job's steps, if no other job ran at the same time. */
  note(job: Job, events: readonly JobEvent[]): void {
    const wasAlone = this.isAlone(job.id);
    const device = this.lastMeasured.find(({ backend }) => backend === job.execution?.backend);
    if (device === undefined || !wasAlone) return;
    const name = nameOf(device);
    for (const { body } of events) {
      if (body.kind !== 'step' || body.omitted) continue;
      // The steps of a span all count with their mean.
      const { firstStep, omittedCount, seconds } = spanOf(body);
      const stepCount = body.step - firstStep + 1 - omittedCount;
      const step = { phase: body.phase, seconds: seconds / stepCount };
      for (let count = 0; count < Math.min(stepCount, spanStepsMax); count++)
        this.reached.note(job.id, job.spec, name, speedOf(device), step);
      this.unsaved.add(name);
    }
    void this.save();
  }

  /** How long steps on a device took, relative to the estimate from its speed; undefined while there were too few steps. */
  reachedOn(device: DeviceDescription): Reached | undefined {
    return this.reached.on(nameOf(device));
  }

  /** Seconds that the steps of a run take, from what jobs reached there, else from the measurement; null if neither is known. */
  secondsOf(spec: RunSpec, device: DeviceDescription): number | null {
    const reached = this.reachedOn(device);
    const seconds = runSeconds(spec, reached?.basis ?? speedOf(device)) * (reached?.ratio ?? 1);
    return Number.isFinite(seconds) && seconds > 0 ? seconds : null;
  }

  /** Whether no other job has run since the previous events of this one. */
  private isAlone(jobId: string): boolean {
    const { running, begun } = this.machine.trainings();
    const before = this.aloneSince;
    this.aloneSince = running === 1 ? { jobId, begun } : undefined;
    return running === 1 && before?.jobId === jobId && before.begun === begun;
  }

  /** Whether the speeds were measured under load and a new measurement would be better. */
  private isWorthAnother(): boolean {
    return (
      this.measured !== undefined &&
      this.measuredLoadRatio > quietLoadRatio &&
      performance.now() - this.measuredMs > remeasureMs &&
      this.machine.trainings().running === 0 &&
      this.machine.loadRatio() < this.measuredLoadRatio / 2
    );
  }
}

/** Identifies a device across starts of the same version of the software on the same machine. */
function nameOf({ backend, model, instructionSet, threadCount, autoPrecision }: DeviceDescription): string {
  return [version, backend, model, instructionSet, threadCount, autoPrecision].join(' ');
}

/** Only the speed, as the engine expects it. */
export function speedOf(device: DeviceDescription): DeviceSpeed {
  const {
    backend,
    threadCount,
    autoPrecision,
    float32Flops,
    bfloat16Flops,
    int8Flops,
    memoryBytesPerSecond,
  } = device;
  const instructionSet = device.instructionSet || null;
  return {
    backend,
    instructionSet,
    threadCount,
    autoPrecision,
    float32Flops,
    bfloat16Flops,
    int8Flops,
    memoryBytesPerSecond,
  };
}
