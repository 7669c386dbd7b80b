import { secondsOf, stepTime, type DeviceSpeed, type RunSpec } from '@relora/engine/plan';

/** Steps that are remembered, of all jobs: enough for a median that single slow ones do not move. */
const stepsMax = 101;
/** Steps before they are believed. */
const stepsMin = 20;

/** A step as it was taken. */
export interface TakenStep {
  isFullRank: boolean;
  seconds: number;
}

/**
 * How long the steps of jobs take over what the measured speed foresees for them: the median of the last ones. What jobs reach beside
 * each other and beside the other work of a machine is what the next one will.
 */
export class ReachedSpeed {
  private ratios: number[] = [];
  private device: DeviceSpeed | undefined;
  /** Of the job whose steps came last. */
  private foreseen: { jobId: string; fullRank: number; main: number } | undefined;

  /** Takes a step of a job on a device. Another measurement of it, or another device, begins again. */
  note(jobId: string, spec: RunSpec, device: DeviceSpeed, { isFullRank, seconds }: TakenStep): void {
    if (device !== this.device) {
      this.device = device;
      this.ratios = [];
      this.foreseen = undefined;
    }
    if (this.foreseen?.jobId !== jobId) {
      const fullRank = secondsOf(stepTime({ ...spec, kind: 'fullRank', adapter: null }, device));
      this.foreseen = { jobId, fullRank, main: secondsOf(stepTime(spec, device)) };
    }
    const expected = isFullRank ? this.foreseen.fullRank : this.foreseen.main;
    if (!(seconds > 0) || !Number.isFinite(expected) || expected <= 0) return;
    this.ratios.push(seconds / expected);
    if (this.ratios.length > stepsMax) this.ratios.shift();
  }

  /** Undefined while too few steps were taken on this device. */
  ratioOn(device: DeviceSpeed): number | undefined {
    if (device !== this.device || this.ratios.length < stepsMin) return undefined;
    return [...this.ratios].sort((a, b) => a - b)[this.ratios.length >> 1];
  }
}
