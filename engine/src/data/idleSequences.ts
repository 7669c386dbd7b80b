import { sequencesInPass } from '../plan/dataPass.js';
import type { TokenSplit } from './tokenSplit.js';

/** Tokens that are looked at together. */
const blockTokens = 1 << 16;

/**
 * Share of the sequences of a part, cut from its beginning, of which no token is to be learned: prompts that are longer than a
 * sequence leave such. Zero where there is no sequence.
 */
export async function idleSequenceShare(split: TokenSplit, sequenceLength: number): Promise<number> {
  const count = sequencesInPass(split.tokenCount, sequenceLength);
  if (count < 1) return 0;
  const together = Math.max(1, Math.floor(blockTokens / sequenceLength));
  let idle = 0;
  for (let first = 0; first < count; first += together) {
    const sequences = Math.min(together, count - first);
    // What is learned of a sequence are the tokens behind each of its own.
    const targets = new Int32Array(sequences * sequenceLength);
    split.mask(first * sequenceLength + 1, targets);
    for (let i = 0; i < sequences; i++)
      if (targets.subarray(i * sequenceLength, (i + 1) * sequenceLength).every((target) => target === -1))
        idle++;
  }
  return idle / count;
}

/** Lengths of sequences that jobs often have. */
const usualLengths = [64, 128, 256, 512, 1024, 2048, 4096];
/** Less is the end of a data set here and there. */
const shareMin = 0.01;

/** What the lengths of prompts mean for jobs, for people; null where even short sequences all have something to learn. */
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
