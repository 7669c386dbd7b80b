import { count, flag, number, object, orMissing, orNull, type ObjectOf } from './shapes.js';

const cadence = { everyStepCount: orMissing(count), everySeconds: orMissing(count) };

/** What can be changed while a run is under way; missing fields stay as they are. */
export const runChange = {
  /** Multiplies the schedule's learning rate; 1 is the schedule itself. */
  learningRateFactor: orMissing(number),
  /** Steps of the main phase. */
  stepCount: orMissing(count),
  evaluation: orMissing(object(cadence)),
  checkpoint: orMissing(object({ ...cadence, keepCount: orMissing(count) })),
  sample: orMissing(object(cadence)),
  /** End the run before this step, and export as at its normal end. */
  stop: orMissing(flag),
};
export type RunChange = ObjectOf<typeof runChange>;

/** A change of a run. It is stored separately from the specification, which does not change, and is replayed at its step on resume. */
export const runUpdate = {
  /** 1, 2, 3 … within the job. */
  number: count,
  /** Step at whose start it takes effect; null until the run has reached it. */
  step: orNull(count),
  change: object(runChange),
};
export type RunUpdate = ObjectOf<typeof runUpdate>;
