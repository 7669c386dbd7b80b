import type { Tokenizer } from './tokenizer.js';

const probeText = "The quick brown fox, it's 1984!\n\n\tnaïve café — 日本語 🙂";

/** Whether two tokenizers give a line of all sorts the same ids. Nothing else shows it: vocabularies of one size may differ. */
export async function encodeAlike(one: Tokenizer, other: Tokenizer): Promise<boolean> {
  const [ids, otherIds] = [await one.encode(probeText), await other.encode(probeText)];
  return Array.from(ids).join() === Array.from(otherIds).join();
}
