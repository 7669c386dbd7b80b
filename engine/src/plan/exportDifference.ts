import { count, flag, number, type ObjectOf } from './shapes.js';

/** How the outputs of an export, read back from its files, differ from those of the run's weights; both in float32 arithmetic. */
export const exportDifference = {
  /** Number of tokens that both were computed on. */
  tokenCount: count,
  /** Whether these are held out; else they are the first of the training part, or random if the data set was deleted. */
  heldOut: flag,
  /** Largest difference of a logit, after subtracting the mean difference of its token. */
  logitDifferenceMax: number,
  /** Root mean square of these differences over that of the run's logits. */
  logitDifferenceRatio: number,
  /** Largest accepted ratio. */
  logitDifferenceRatioMax: number,
  /** Mean loss of the run's weights on these tokens, in nats. */
  loss: number,
  /** The same for the export. */
  exportedLoss: number,
};
export type ExportDifference = ObjectOf<typeof exportDifference>;
