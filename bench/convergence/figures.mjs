import { finalLoss } from './compare.mjs';

/** Two standard errors: what a difference between modes must exceed to be called one. */
const clearErrors = 2;
/** Perplexity over full rank's that a ReLoRA-type mode should stay within. */
export const ratioWanted = 1.02;

export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Sample standard deviation; 0 for a single value, whose spread nobody knows. */
export function spread(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

/** What the table and the conclusion say of one mode, beside `reference`, which is full rank. */
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
    // Of the mean loss's perplexity, seeds paired: their common luck with weights and order cancels.
    ratio: Math.exp(mean(differences)),
    ratioSpread: Math.exp(mean(differences)) * spread(differences),
    textError: Math.max(...runs.map((run, index) => textError(run, reference.runs[index]))),
    tokenCount: runs[0].curve?.at(-1).tokenCount,
    seconds: mean(runs.map(({ seconds }) => seconds)),
    effectiveRank: mean(runs.map(({ effectiveRank }) => effectiveRank)),
    trainableCount: runs[0].trainableCount,
  };
}

/** Standard error of a difference in loss that comes from which text happened to be held out, from its pieces. */
function textError(run, reference) {
  if (run.failure !== null || reference.failure !== null) return 0;
  const differences = run.heldOutParts.map(({ sum, count }, index) => {
    const other = reference.heldOutParts[index];
    return sum / count - other.sum / other.count;
  });
  return spread(differences) / Math.sqrt(differences.length);
}

/**
 * How the loss of `lower`, which is expected to be no higher, stands to that of `higher`, seed by seed:
 * `asExpected`, `reversed`, or `undecided` where it is within two standard errors of nothing or the seeds disagree.
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
