import { byteCharacters } from '../../engine/dist/data/byteAlphabet.js';

/** A byte-level BPE tokenizer.json with this many tokens: the end of a text, all bytes, pairs of them, then triples. */
export function largeTokenizerJson(tokenCount: number): string {
  const vocab: Record<string, number> = { '<|endoftext|>': 0 };
  const merges: [string, string][] = [];
  let next = 1;
  for (const character of byteCharacters) vocab[character] = next++;
  for (const [left, right] of pairs()) {
    if (next === tokenCount) break;
    vocab[left + right] = next++;
    merges.push([left, right]);
  }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const endOfText = {
    id: 0,
    content: '<|endoftext|>',
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  };
  return JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [endOfText],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: 'BPE', dropout: null, unk_token: null, byte_fallback: false, vocab, merges },
  });
}

function* pairs(): Generator<[string, string]> {
  for (const left of byteCharacters) for (const right of byteCharacters) yield [left, right];
  for (const first of byteCharacters)
    for (const second of byteCharacters) for (const third of byteCharacters) yield [first + second, third];
}
