/**
 * A step event as a trainer sends it, for tests of what the server does with it.
 * @typedef {Extract<import('../../server/dist/jobs/job.js').JobEventBody, { kind: 'step' }>} StepBody
 * @param {number} step
 * @param {Partial<StepBody>} changes
 * @returns {StepBody}
 */
export function stepBody(step, changes = {}) {
  return {
    kind: 'step',
    step,
    phase: 'adapter',
    loss: 3,
    gradientNorm: 1,
    learningRate: 1e-3,
    tokenCount: 16,
    trainedTokens: 16 * (step + 1),
    stepSeconds: 0.1,
    skipped: false,
    residentBytes: 1000,
    ...changes,
  };
}
