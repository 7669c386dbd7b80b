import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const corpus = fileURLToPath(new URL('../../.relora/demo/corpus/train.jsonl', import.meta.url));
const license = fileURLToPath(new URL('../../LICENSE', import.meta.url));

/**
 * Ids of English text: words, punctuation marks and spaces, numbered by frequency, so that embeddings and their gradients have the
 * repetitions of real text without a tokenizer that takes a minute to train. Words beyond the vocabulary share its last ids.
 */
export function openText(vocabSize) {
  const lines = existsSync(corpus) ? readFileSync(corpus, 'utf8').trimEnd().split('\n') : [];
  const text =
    lines.length > 0 ? lines.map((line) => JSON.parse(line).text).join('\n') : readFileSync(license, 'utf8');
  const words = text.match(/[A-Za-z]+|\d|[^\sA-Za-z\d]|\n/g);
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  const order = [...counts].sort(([one, a], [other, b]) => b - a || (one < other ? -1 : 1));
  const rank = new Map(order.map(([word], place) => [word, place]));
  const ids = Int32Array.from(words, (word) => {
    const place = rank.get(word);
    return place < vocabSize ? place : vocabSize - 1 - (place % Math.max(1, vocabSize >> 3));
  });
  return {
    name: lines.length > 0 ? `${words.length} words of the State of the Union addresses` : 'the license',
    /** [batch * time] inputs and targets of a step; each step has a different piece of the text. */
    batchOf(step, batch, time) {
      const inputs = new Int32Array(batch * time);
      const targets = new Int32Array(batch * time);
      for (let i = 0; i < batch * time; i++) {
        inputs[i] = ids[(step * batch * time + i) % ids.length];
        targets[i] = ids[(step * batch * time + i + 1) % ids.length];
      }
      return { inputs, targets };
    },
  };
}
