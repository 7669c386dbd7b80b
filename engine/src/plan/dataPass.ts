/**
 * Whole sequences in one pass over a training part. They share one token with the next, so all but the last
 * (tokens - 1) mod sequenceLength tokens are in one.
 */
export function sequencesInPass(tokenCount: number, sequenceLength: number): number {
  return Math.max(0, Math.floor((tokenCount - 1) / sequenceLength));
}
