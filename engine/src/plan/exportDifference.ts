import { count, flag, number, type ObjectOf } from './shapes.js';

/** What an export computes, by its files as they were read back, against the weights of the run; both in float32 arithmetic. */
export const exportDifference = {
  /** Tokens that both were computed on. */
  tokenCount: count,
  /** Whether those were held out; else they are the first of the training part, or drawn where the data set is gone. */
  heldOut: flag,
  /** Largest difference of a logit, each about the mean of its token. */
  logitDifferenceMax: number,
  /** Root of the mean square of these differences over that of the run's logits. */
  logitDifferenceRatio: number,
  /** Largest ratio that is let pass. */
  logitDifferenceRatioMax: number,
  /** Mean loss of the run's weights on these tokens, nats. */
  loss: number,
  /** The same of the export. */
  exportedLoss: number,
};
export type ExportDifference = ObjectOf<typeof exportDifference>;
