import { readFile } from 'node:fs/promises';
import { BPE, Tokenizer as NativeTokenizer, byteLevelPreTokenizer } from 'tokenizers';
import { byteCharacters } from './byteAlphabet.js';
import { DataError } from './dataErrors.js';

/** The token after every document. */
export const endOfTextToken = '<|endoftext|>';

/** The library trains a vocabulary of 30,000; merges are ordered, so a prefix of them gives any smaller one. */
export const trainedVocabularySizeMax = 30_000;

/** All bytes and the end-of-text token. */
export const trainedVocabularySizeMin = 257;

const wordLengthMax = 256;

/**
 * Trains a byte-level BPE vocabulary on a text file of `trainableText` and returns a tokenizer.json that Hugging Face loads: all 256 bytes,
 * then merges in the order they were learned, then <|endoftext|> as the last id.
 * @param scratchPath temporary file that may be written
 */
export async function trainBpe(
  textPath: string,
  vocabularySize: number,
  scratchPath: string,
): Promise<string> {
  const trainer = new NativeTokenizer(BPE.empty());
  trainer.setPreTokenizer(byteLevelPreTokenizer(false));
  trainer.train([textPath]);
  trainer.save(scratchPath);
  const trained = JSON.parse(await readFile(scratchPath, 'utf8')) as {
    model: { merges: [string, string][] };
  };

  const tokens = new Set(byteCharacters);
  const merges: [string, string][] = [];
  for (const merge of trained.model.merges) {
    if (tokens.size + 1 === vocabularySize) break;
    tokens.add(merge[0] + merge[1]);
    merges.push(merge);
  }
  if (tokens.size + 1 < vocabularySize)
    throw new DataError('VOCABULARY_TOO_LARGE', { asked: vocabularySize, max: tokens.size + 1 });
  return byteLevelTokenizerJson(merges);
}

/** Text with its longest words cut: they increase the time and memory of training without improving the vocabulary. */
export function trainableText(text: string): string {
  return text
    .replace(new RegExp(`\\S{${wordLengthMax}}(?=\\S)`, 'gu'), '$&\n')
    .replace(new RegExp(`\\s{${wordLengthMax},}`, 'gu'), (spaces) => spaces.slice(0, wordLengthMax));
}

/** A tokenizer.json of all bytes, each with its value as id, then the merges, then the end-of-text token. */
export function byteLevelTokenizerJson(merges: readonly [string, string][]): string {
  const tokens = new Set(byteCharacters);
  for (const [left, right] of merges) tokens.add(left + right);
  const vocab = Object.fromEntries([...tokens, endOfTextToken].map((token, id) => [token, id]));
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      {
        id: vocab[endOfTextToken],
        content: endOfTextToken,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      },
    ],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges,
    },
  });
}
