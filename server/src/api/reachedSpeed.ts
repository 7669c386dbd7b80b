import { asFullRank, secondsOf, stepTime, type DeviceSpeed, type RunSpec } from '@relora/engine/plan';

/** Steps that are remembered of a device, of all jobs: enough for a median that single slow ones do not move. */
const stepsMax = 101;
/** Steps before they are believed. */
const stepsMin = 20;
/** Shares of the steps that took less than the two ends of what is reported as their spread. */
const [lowShare, highShare] = [0.1, 0.9];

/** A step as it was taken. */
export interface TakenStep {
  isFullRank: boolean;
  seconds: number;
}

/** What the steps of jobs took on a device over what `basis` foresees for them. */
export interface Reached {
  /** The measurement that the ratios are held against: a later one changes neither. */
  basis: DeviceSpeed;
  ratio: number;
  /** A tenth of the steps took less, a tenth took more. */
  lowRatio: number;
  highRatio: number;
}

/** As it is stored; ratios in the order of the steps. */
export interface ReachedRow {
  device: string;
  basis: DeviceSpeed;
  ratios: number[];
}

/** What jobs reached, by device: the last steps of all that ran alone there. */
export class ReachedSpeed {
  private readonly rows = new Map<string, ReachedRow>();
  /** Of the job whose steps came last. */
  private foreseen: { jobId: string; basis: DeviceSpeed; fullRank: number; main: number } | undefined;

  /** Takes over what was stored. */
  restore(rows: readonly ReachedRow[]): void {
    for (const row of rows) this.rows.set(row.device, row);
  }

  /** Takes a step of a job on a device, whose name is `device` and whose speed was measured. */
  note(
    jobId: string,
    spec: RunSpec,
    device: string,
    measured: DeviceSpeed,
    { isFullRank, seconds }: TakenStep,
  ): void {
    const row = this.rows.get(device) ?? { device, basis: measured, ratios: [] };
    if (this.foreseen?.jobId !== jobId || this.foreseen.basis !== row.basis) {
      const fullRank = secondsOf(stepTime(asFullRank(spec), row.basis));
      const main = secondsOf(stepTime(spec, row.basis));
      this.foreseen = { jobId, basis: row.basis, fullRank, main };
    }
    const expected = isFullRank ? this.foreseen.fullRank : this.foreseen.main;
    if (!(seconds > 0) || !Number.isFinite(expected) || expected <= 0) return;
    row.ratios.push(seconds / expected);
    if (row.ratios.length > stepsMax) row.ratios.shift();
    this.rows.set(device, row);
  }

  /** Undefined while too few steps were taken on this device. */
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
