/**
 * Whole sequences in one pass over a training part. Each shares one token with the next (the last target is the next input), so all but the
 * last (tokens - 1) mod sequenceLength tokens are used.
 */
export function sequencesInPass(tokenCount: number, sequenceLength: number): number {
  return Math.max(0, Math.floor((tokenCount - 1) / sequenceLength));
}
