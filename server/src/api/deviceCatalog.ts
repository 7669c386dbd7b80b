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

/** Steps of a span that are taken for as many measurements. */
const spanStepsMax = 100;
/** How long a failed measurement is left alone. */
const retryMs = 30_000;

/** A measurement beside more other work than this shows what that left over rather than the machine. */
const quietLoadRatio = 0.25;
/** How long a measurement beside other work is taken for the best that can be had. */
const remeasureMs = 60_000;

/** Time between two writes of what jobs reached, so that fast steps do not make the store busy. */
const savePauseMs = 10_000;

/** What a measurement has to know of the machine. */
export interface MachineState {
  /** Share of the processors in use over the last minute, 0 to 1; 0 where the system does not say. */
  loadRatio(): number;
  /** Executions of jobs: that run now, and that were begun so far. */
  trainings(): { running: number; begun: number };
}

export function machineLoadRatio(): number {
  return Math.min(1, loadavg()[0]! / availableParallelism());
}

/**
 * What jobs can run on: measured in a child, in the background of the start, and kept. A measurement that was made beside other work,
 * as at the start of a busy machine, is made again once the machine is quieter and no job runs.
 */
export class DeviceCatalog implements KnownDevices {
  private measured: Promise<readonly DeviceDescription[]> | undefined;
  private failedMs = -Infinity;
  private measuredMs = -Infinity;
  private measuredLoadRatio = 0;
  /** As they came last. */
  private known: FoundDevices | undefined;
  private readonly foundListeners = new Set<() => void>();
  private isCompiled = false;
  private readonly reached = new ReachedSpeed();
  /** Executions begun when a job that ran alone was heard of last. */
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
    /** What the other servers of the store have. */
    readonly elsewhere: () => Promise<readonly DeviceDescription[]> = async () => [],
  ) {}

  /** Takes over what jobs reached before the server was started. */
  async restore(): Promise<void> {
    this.reached.restore(await this.store.read());
  }

  /**
   * Stores what jobs reached since the last time, unless that is just past. It only makes estimates better: training neither waits for
   * it nor fails with it.
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

  /** Share of the processors that other work used when the speeds were measured: how far they may lie below the machine's. */
  get loadRatio(): number {
    return this.measuredLoadRatio;
  }

  /** As they came last, without a new measurement. */
  get lastMeasured(): readonly DeviceDescription[] {
    return this.known?.devices ?? [];
  }

  /** Calls it each time that devices were found. */
  onFound(listener: () => void): void {
    this.foundListeners.add(listener);
  }

  /** Where the last look failed, another begins: jobs wait for it. */
  devices(): readonly DeviceDescription[] | null {
    if (this.known === undefined && !this.stopping.aborted) void this.list();
    return this.known?.devices ?? null;
  }

  cards(): readonly DeviceDescription[] | null {
    return this.known?.devices.filter(({ backend }) => backend === 'cuda') ?? null;
  }

  /** Where native code comes from; empty while it was not loaded. */
  nativeCode(): string {
    return this.known?.native ?? '';
  }

  libraries(): readonly string[] {
    return this.known?.libraries ?? [];
  }

  problems(): readonly DeviceProblem[] {
    return this.known?.problems ?? [];
  }

  /** Looks again: a card that was lost may be gone. */
  lookAgain(): void {
    this.measured = undefined;
    this.failedMs = -Infinity;
    void this.list();
  }

  /** Measures now; throws ConfigInvalid when the settings force a device, a folder or instructions that are not there. */
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
    this.known = await this.tasks.describeDevices(this.stopping);
    for (const listener of this.foundListeners) listener();
    this.compileKernels();
    return this.known.devices;
  }

  /** What is not compiled yet a trainer compiles for itself: nobody waits for it. */
  private compileKernels(): void {
    if (this.isCompiled || this.cards()!.length === 0) return;
    this.isCompiled = true;
    this.tasks.compileKernels(this.stopping).catch((error: unknown) => {
      this.isCompiled = false;
      if (!this.stopping.aborted) this.log.warn({ err: error }, 'The kernels of cards could not be compiled');
    });
  }

  /** Learns from what the steps of a job took, as far as no other job ran beside them. */
  note(job: Job, events: readonly JobEvent[]): void {
    const wasAlone = this.isAlone(job.id);
    const device = this.lastMeasured.find(({ backend }) => backend === job.execution?.backend);
    if (device === undefined || !wasAlone) return;
    const name = nameOf(device);
    for (const { body } of events) {
      if (body.kind !== 'step' || body.omitted) continue;
      // Each step of a span, with their mean.
      const { firstStep, omittedCount, seconds } = spanOf(body);
      const stepCount = body.step - firstStep + 1 - omittedCount;
      const step = { isFullRank: body.phase !== 'adapter', seconds: seconds / stepCount };
      for (let count = 0; count < Math.min(stepCount, spanStepsMax); count++)
        this.reached.note(job.id, job.spec, name, speedOf(device), step);
      this.unsaved.add(name);
    }
    void this.save();
  }

  /** What steps of jobs took on a device over what its speed foresees; undefined while too few were taken. */
  reachedOn(device: DeviceDescription): Reached | undefined {
    return this.reached.on(nameOf(device));
  }

  /** How long the steps of a run take, by what jobs reached there, or what was measured; null where neither is known. */
  secondsOf(spec: RunSpec, device: DeviceDescription): number | null {
    const reached = this.reachedOn(device);
    const seconds = runSeconds(spec, reached?.basis ?? speedOf(device)) * (reached?.ratio ?? 1);
    return Number.isFinite(seconds) && seconds > 0 ? seconds : null;
  }

  /** Whether no other job has run since the events of this one came last. */
  private isAlone(jobId: string): boolean {
    const { running, begun } = this.machine.trainings();
    const before = this.aloneSince;
    this.aloneSince = running === 1 ? { jobId, begun } : undefined;
    return running === 1 && before?.jobId === jobId && before.begun === begun;
  }

  /** Whether the present speeds were measured beside other work, and a new measurement would be better. */
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

/** Of one version of the software on one machine, however often it is started. */
function nameOf({ backend, model, instructionSet, threadCount, autoPrecision }: DeviceDescription): string {
  return [version, backend, model, instructionSet, threadCount, autoPrecision].join(' ');
}

/** The speed alone, in the engine's words. */
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
