import type { Tokenizer } from './tokenizer.js';

const probeText = "The quick brown fox, it's 1984!\n\n\tnaïve café — 日本語 🙂";

/**
 * Whether two tokenizers encode a varied line of text to the same ids. Comparing sizes is not enough: vocabularies of the same size may
 * differ.
 */
export async function encodeAlike(one: Tokenizer, other: Tokenizer): Promise<boolean> {
  const [ids, otherIds] = [await one.encode(probeText), await other.encode(probeText)];
  return Array.from(ids).join() === Array.from(otherIds).join();
}
