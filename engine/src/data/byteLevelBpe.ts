import { byteCharacters, bytesToToken, tokenToBytes } from './byteAlphabet.js';
import type { CutTokens } from './tokenizer.js';
import { isObject, type TokenizerJson } from './tokenizerJson.js';
import { wordPattern } from './wordPattern.js';

/** Size of the cache of words with their tokens: it covers nearly every word of a text. */
const cachedWordsMax = 100_000;
const cachedWordLengthMax = 64;

export interface ByteLevelEncoder {
  encode(text: string): CutTokens;
  /** Whether it encodes this text as the package does; true for all texts unless `hasLimits`. */
  serves(text: string): boolean;
  hasLimits: boolean;
}

/**
 * Byte-level BPE in JavaScript, for tokenizers of the kind of GPT-2, Llama 3 and Qwen: several times as fast as the package, whatever the
 * size of the pieces, with the same tokens. Unlike the package it never aborts the process. Null for tokenizers of another kind.
 */
export function byteLevelEncoder(checked: TokenizerJson): ByteLevelEncoder | null {
  const words = wordPattern(checked);
  if (words === null || !isPlainByteLevel(checked)) return null;
  const { vocabulary } = checked;
  // With `ignore_merges` a word that is a token is encoded as that token, whatever merging would give.
  const wholeWords = checked.json.model.ignore_merges === true ? vocabulary : null;
  const byteIds = Int32Array.from(byteCharacters, (character) => vocabulary.get(character)!);
  const merges = mergeTable(checked);
  const cache = new Map<string, readonly number[]>();

  const encodeWord = (word: string): readonly number[] => {
    const known = cache.get(word);
    if (known !== undefined) return known;
    const bytes = Buffer.from(word, 'utf8');
    const whole = wholeWords?.get(bytesToToken(bytes));
    const ids =
      whole !== undefined
        ? [whole]
        : mergeBytes(
            Array.from(bytes, (byte) => byteIds[byte]!),
            merges,
          );
    if (word.length <= cachedWordLengthMax) {
      if (cache.size >= cachedWordsMax) cache.clear();
      cache.set(word, ids);
    }
    return ids;
  };
  const addedIds = new Map(checked.addedTokens.map(({ content, id }) => [content, id]));
  const added = addedPattern([...addedIds.keys()]);
  const encode = (text: string): CutTokens => {
    const ids: number[] = [];
    const [places, counts]: [number[], number[]] = [[], []];
    let place = 0;
    const begin = (word: string): void => {
      places.push(place);
      counts.push(ids.length);
      place += word.length; // words and added tokens cover the whole text
    };
    for (const part of added === null ? [text] : text.split(added)) {
      const addedId = addedIds.get(part);
      if (addedId !== undefined) {
        begin(part);
        ids.push(addedId);
      } else {
        for (const word of part.match(words) ?? []) {
          begin(word);
          for (const id of encodeWord(word)) ids.push(id);
        }
      }
    }
    return { ids: Int32Array.from(ids), places, counts };
  };
  const hasLimits = isObject(checked.json.normalizer);
  // NFC text needs no normalization; other text is left to the package, whose version of Unicode then applies.
  return { encode, hasLimits, serves: (text) => !hasLimits || text.normalize('NFC') === text };
}

/** Rank and merged token of each mergeable pair of ids. */
interface Merges {
  /** Key: left * size + right. */
  ranks: Map<number, number>;
  merged: Int32Array;
  size: number;
}

function mergeTable({ vocabulary, merges, vocabularySize: size }: TokenizerJson): Merges {
  const ranks = new Map<number, number>();
  const merged = new Int32Array(merges.length);
  for (const [rank, [left, right]] of merges.entries()) {
    merged[rank] = vocabulary.get(left + right)!;
    ranks.set(vocabulary.get(left)! * size + vocabulary.get(right)!, rank); // of duplicate pairs the last counts, as upstream
  }
  return { ranks, merged, size };
}

/** Merges the pair of lowest rank, leftmost first, until none is left. Changes `ids`. */
function mergeBytes(ids: number[], merges: Merges): number[] {
  if (ids.length > 64) return mergeLong(ids, merges);
  const { ranks, merged, size } = merges;
  for (;;) {
    let best = Infinity;
    let at = -1;
    for (let i = 0; i + 1 < ids.length; i++) {
      const rank = ranks.get(ids[i]! * size + ids[i + 1]!);
      if (rank !== undefined && rank < best) {
        best = rank;
        at = i;
      }
    }
    if (at < 0) return ids;
    ids.splice(at, 2, merged[best]!);
  }
}

/** The same in O(n log n), for long words: a linked list of tokens and a heap of their pairs. */
function mergeLong(ids: number[], { ranks, merged, size }: Merges): number[] {
  const count = ids.length;
  const next = Int32Array.from({ length: count }, (_, i) => (i + 1 < count ? i + 1 : -1));
  const previous = Int32Array.from({ length: count }, (_, i) => i - 1);
  // One number per pair, rank first, then position, so that the smallest is the next to merge.
  const heap: number[] = [];
  const offer = (left: number) => {
    const right = left < 0 ? -1 : next[left]!;
    if (right < 0) return;
    const rank = ranks.get(ids[left]! * size + ids[right]!);
    if (rank !== undefined) push(heap, rank * count + left);
  };
  for (let i = 0; i < count; i++) offer(i);
  while (heap.length > 0) {
    const top = pop(heap);
    const left = top % count;
    const rank = Math.floor(top / count);
    const right = next[left]!;
    // A pair whose tokens were merged meanwhile is ignored; the pairs that replaced it were added.
    if (ids[left]! < 0 || right < 0 || ranks.get(ids[left]! * size + ids[right]!) !== rank) continue;
    ids[left] = merged[rank]!;
    ids[right] = -1;
    next[left] = next[right]!;
    if (next[left]! >= 0) previous[next[left]!] = left;
    offer(previous[left]!);
    offer(left);
  }
  return ids.filter((id) => id >= 0);
}

function push(heap: number[], value: number): void {
  let at = heap.push(value) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (heap[parent]! <= value) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = value;
}

function pop(heap: number[]): number {
  const top = heap[0]!;
  const value = heap.pop()!;
  let at = 0;
  if (heap.length === 0) return top;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= value) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = value;
  return top;
}

/** Bytes of every token, by id; null when the tokenizer is not byte-level. Special tokens have none. */
export function byteTable({
  json,
  vocabulary,
  specialIds,
  addedTokens,
}: TokenizerJson): ReadonlyMap<number, Uint8Array> | null {
  if (!isObject(json.decoder) || json.decoder.type !== 'ByteLevel') return null;
  const added = new Map(addedTokens.map(({ id, content }) => [id, content]));
  const table = new Map<number, Uint8Array>();
  for (const [token, id] of vocabulary) {
    if (specialIds.has(id) || added.has(id)) continue;
    const bytes = tokenToBytes(token);
    if (bytes === null) return null;
    table.set(id, bytes);
  }
  for (const [id, content] of added) if (!specialIds.has(id)) table.set(id, Buffer.from(content, 'utf8'));
  return table;
}

/** Whether the tokenizer only splits into words and merges bytes, for texts in NFC. */
function isPlainByteLevel({ json, vocabulary, addedTokens }: TokenizerJson): boolean {
  const { model, normalizer, decoder } = json;
  const isType = (part: unknown, type: string) => isObject(part) && part.type === type;
  return (
    model.type === 'BPE' &&
    !model.dropout &&
    !model.continuing_subword_prefix &&
    !model.end_of_word_suffix &&
    (!normalizer || isType(normalizer, 'NFC')) &&
    isType(decoder, 'ByteLevel') &&
    addedTokens.every(({ isPlain }) => isPlain) &&
    byteCharacters.every((character) => vocabulary.has(character))
  );
}

/** Longest first, since the leftmost longest match counts; with a group, so that splitting keeps the matches. */
function addedPattern(contents: string[]): RegExp | null {
  if (contents.length === 0) return null;
  const escaped = contents
    .sort((a, b) => b.length - a.length)
    .map((content) => content.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&'));
  return new RegExp(`(${escaped.join('|')})`, 'u');
}
