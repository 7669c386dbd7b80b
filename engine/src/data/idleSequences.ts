import { sequencesInPass } from '../plan/dataPass.js';
import type { TokenSplit } from './tokenSplit.js';

/** Tokens that are read together. */
const blockTokens = 1 << 16;

/**
 * Fraction of a part's sequences, cut from its beginning, that have no token to be learned, as happens with prompts longer than a sequence.
 * Zero if there is no sequence.
 */
export async function idleSequenceShare(split: TokenSplit, sequenceLength: number): Promise<number> {
  const count = sequencesInPass(split.tokenCount, sequenceLength);
  if (count < 1) return 0;
  const together = Math.max(1, Math.floor(blockTokens / sequenceLength));
  let idle = 0;
  for (let first = 0; first < count; first += together) {
    const sequences = Math.min(together, count - first);
    // The targets of a sequence are the tokens after each of its own.
    const targets = new Int32Array(sequences * sequenceLength);
    split.mask(first * sequenceLength + 1, targets);
    for (let i = 0; i < sequences; i++)
      if (targets.subarray(i * sequenceLength, (i + 1) * sequenceLength).every((target) => target === -1))
        idle++;
  }
  return idle / count;
}

/** Common sequence lengths of jobs. */
const usualLengths = [64, 128, 256, 512, 1024, 2048, 4096];
/** Smaller fractions are normal at the end of a data set. */
const shareMin = 0.01;

/** A note for people on what the lengths of prompts mean for jobs; null if even short sequences all have something to learn. */
export async function idleSequencesText(split: TokenSplit): Promise<string | null> {
  const shares: string[] = [];
  for (const length of usualLengths) {
    const share = await idleSequenceShare(split, length);
    if (share < shareMin)
      return shares.length === 0
        ? null
        : `Prompts are long: of sequences of ${shares.join(', of ')} have nothing to learn; with a sequence_length of ${length} nearly all have`;
    shares.push(`${length} tokens ${Math.round(100 * share)} %`);
  }
  return `Prompts are long: of sequences of ${shares.join(', of ')} have nothing to learn`;
}
