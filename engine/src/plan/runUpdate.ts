import { count, flag, number, object, orMissing, orNull, type ObjectOf } from './shapes.js';

const cadence = { everyStepCount: orMissing(count), everySeconds: orMissing(count) };

/** What may be changed of a run under way; what is missing stays as it is. */
export const runChange = {
  /** Of the learning rate, over what the schedule says; 1 is the schedule itself. */
  learningRateFactor: orMissing(number),
  /** Steps of the main phase. */
  stepCount: orMissing(count),
  evaluation: orMissing(object(cadence)),
  checkpoint: orMissing(object({ ...cadence, keepCount: orMissing(count) })),
  sample: orMissing(object(cadence)),
  /** The run ends before this step, and is exported as at its end. */
  stop: orMissing(flag),
};
export type RunChange = ObjectOf<typeof runChange>;

/** A change of a run. It stands beside the specification, which stays what it was, and is repeated by its step. */
export const runUpdate = {
  /** 1, 2, 3 … within the job. */
  number: count,
  /** At whose start it takes effect; null until the run has come to it. */
  step: orNull(count),
  change: object(runChange),
};
export type RunUpdate = ObjectOf<typeof runUpdate>;
