/** A typical step event; all of them differ. */
export function stepBody(step) {
  return {
    kind: 'step',
    step,
    phase: 'fullRank',
    loss: 3 + Math.sin(step) / 10,
    gradientNorm: 0.123456789 + step / 1e9,
    learningRate: 1e-3 / (1 + step / 1e6),
    tokenCount: 8192,
    trainedTokens: 8192 * (step + 1),
    stepSeconds: 0.001,
    skipped: false,
    residentBytes: 1e9 + step,
  };
}
