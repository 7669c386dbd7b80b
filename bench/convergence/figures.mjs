import { finalLoss } from './compare.mjs';

/** A difference between modes counts only if it exceeds two standard errors. */
const clearErrors = 2;
/** A ReLoRA-type mode's perplexity should stay within this multiple of full rank's. */
export const ratioWanted = 1.02;

export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Sample standard deviation; 0 for a single value, whose spread is unknown. */
export function spread(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

/** The figures of one mode for the table and the conclusion, relative to `reference`, which is full rank. */
export function figuresOf({ mode, spec, runs, ...rest }, reference) {
  const losses = runs.map(finalLoss);
  const differences = runs.map((run, index) => finalLoss(run) - finalLoss(reference.runs[index]));
  return {
    ...rest,
    mode,
    spec,
    losses,
    loss: mean(losses),
    lossSpread: spread(losses),
    // Perplexity ratio of the mean losses, paired by seed: effects of weights and order common to both cancel.
    ratio: Math.exp(mean(differences)),
    ratioSpread: Math.exp(mean(differences)) * spread(differences),
    textError: Math.max(...runs.map((run, index) => textError(run, reference.runs[index]))),
    tokenCount: runs[0].curve?.at(-1).tokenCount,
    seconds: mean(runs.map(({ seconds }) => seconds)),
    effectiveRank: mean(runs.map(({ effectiveRank }) => effectiveRank)),
    trainableCount: runs[0].trainableCount,
  };
}

/** Standard error of a loss difference from the choice of the held-out text, estimated from its pieces. */
function textError(run, reference) {
  if (run.failure !== null || reference.failure !== null) return 0;
  const differences = run.heldOutParts.map(({ sum, count }, index) => {
    const other = reference.heldOutParts[index];
    return sum / count - other.sum / other.count;
  });
  return spread(differences) / Math.sqrt(differences.length);
}

/**
 * Compares the loss of `lower`, which is expected to be no higher, with that of `higher`, seed by seed: `asExpected`, `reversed`, or
 * `undecided` if the difference is within two standard errors of zero or the seeds disagree.
 */
export function orderOf(lower, higher) {
  const differences = lower.losses.map((loss, index) => higher.losses[index] - loss);
  const difference = mean(differences);
  const error = spread(differences) / Math.sqrt(differences.length);
  const agree = differences.every((one) => Math.sign(one) === Math.sign(difference));
  const isClear = agree && differences.length > 1 && Math.abs(difference) > clearErrors * error;
  const verdict = !isClear ? 'undecided' : difference > 0 ? 'asExpected' : 'reversed';
  return { difference, error, verdict };
}
