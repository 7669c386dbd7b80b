import {
  fullRankPhases,
  secondsOf,
  stepTime,
  type DeviceSpeed,
  type Phase,
  type RunSpec,
} from '@relora/engine/plan';

/** Steps that are kept per device, over all jobs: enough for a median that a few slow steps do not move. */
const stepsMax = 101;
/** Steps needed before there is a result. */
const stepsMin = 20;
/** The quantiles that are reported as the spread. */
const [lowShare, highShare] = [0.1, 0.9];

/** The duration of a step. */
export interface TakenStep {
  phase: Phase;
  seconds: number;
}

/** How long the steps of jobs took on a device, relative to the estimate from `basis`. */
export interface Reached {
  /** The measurement that the ratios refer to: a later one changes neither. */
  basis: DeviceSpeed;
  ratio: number;
  /** A tenth of the steps had a lower ratio than `lowRatio`, a tenth a higher one than `highRatio`. */
  lowRatio: number;
  highRatio: number;
}

/** The stored form; ratios in the order of the steps. */
export interface ReachedRow {
  device: string;
  basis: DeviceSpeed;
  ratios: number[];
}

/** The speed that jobs reached, by device: from the last steps of jobs that ran alone on it. */
export class ReachedSpeed {
  private readonly rows = new Map<string, ReachedRow>();
  /** The estimate for the job that reported last. */
  private foreseen: { jobId: string; basis: DeviceSpeed; seconds: Map<Phase, number> } | undefined;

  /** Loads what was stored. */
  restore(rows: readonly ReachedRow[]): void {
    for (const row of rows) this.rows.set(row.device, row);
  }

  /** Adds a step of a job on the device named `device`, whose speed was measured. */
  note(
    jobId: string,
    spec: RunSpec,
    device: string,
    measured: DeviceSpeed,
    { phase, seconds }: TakenStep,
  ): void {
    const row = this.rows.get(device) ?? { device, basis: measured, ratios: [] };
    if (this.foreseen?.jobId !== jobId || this.foreseen.basis !== row.basis) {
      this.foreseen = { jobId, basis: row.basis, seconds: secondsByPhase(spec, row.basis) };
    }
    const expected = this.foreseen.seconds.get(phase) ?? NaN;
    if (!(seconds > 0) || !Number.isFinite(expected) || expected <= 0) return;
    row.ratios.push(seconds / expected);
    if (row.ratios.length > stepsMax) row.ratios.shift();
    this.rows.set(device, row);
  }

  /** Undefined while too few steps ran on this device. */
  on(device: string): Reached | undefined {
    const row = this.rows.get(device);
    if (row === undefined || row.ratios.length < stepsMin) return undefined;
    const sorted = [...row.ratios].sort((a, b) => a - b);
    const at = (share: number): number => sorted[Math.floor(share * (sorted.length - 1))]!;
    return { basis: row.basis, ratio: at(0.5), lowRatio: at(lowShare), highRatio: at(highShare) };
  }

  row(device: string): ReachedRow | undefined {
    return this.rows.get(device);
  }
}

/** Seconds of a step in each phase of a job. */
function secondsByPhase(spec: RunSpec, speed: DeviceSpeed): Map<Phase, number> {
  const phases = [{ phase: 'adapter' as Phase, as: spec }, ...fullRankPhases(spec)];
  return new Map(phases.map(({ phase, as }) => [phase, secondsOf(stepTime(as, speed))]));
}
