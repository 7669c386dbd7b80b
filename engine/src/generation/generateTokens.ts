import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Llama } from '../model/llama.js';
import { Random } from '../random.js';
import { sampleToken, type SamplingSettings } from './sampleToken.js';

export interface GenerationSettings extends SamplingSettings {
  tokenCountMax: number;
  /** The same seed and prompt give the same text. */
  seed: number;
  /** Ends the text when drawn; is not yielded itself. */
  stopId?: number;
}

/**
 * Yields ids that continue `prompt`, one at a time. Each costs one row through the model, since keys and values of the past are cached.
 * When all positions are used, the older half is dropped and the newer half is recomputed from position 0, since cached keys contain their
 * position. Aborting ends the text; between ids other events are handled. Throws on an empty prompt.
 */
export async function* generateTokens(
  model: Llama,
  prompt: readonly number[],
  settings: GenerationSettings,
  signal?: AbortSignal,
): AsyncGenerator<number> {
  if (prompt.length === 0) throw new Error('A prompt needs at least one token');
  const positionsMax = model.config.maxPositionEmbeddings;
  const random = Random.forStream(settings.seed, 'generate');
  let window = prompt.slice(-positionsMax);
  // A cache for all positions of a large model takes gigabytes; a short text needs few positions.
  const cachedMax = Math.min(positionsMax, window.length + settings.tokenCountMax);
  let cache = model.newCache(cachedMax);
  try {
    let logits = await model.extend(cache, Int32Array.from(window));

    for (let count = 0; count < settings.tokenCountMax; count++) {
      await nextTurn();
      if (signal?.aborted) return;
      const id = sampleToken(logits, settings, random);
      if (id === settings.stopId) return;
      yield id;
      if (count + 1 === settings.tokenCountMax) return;

      window.push(id);
      if (window.length <= positionsMax) {
        logits = await model.extend(cache, Int32Array.of(id));
      } else {
        window = window.slice(-Math.ceil(positionsMax / 2));
        model.device.releaseCache(cache);
        cache = model.newCache(cachedMax);
        logits = await model.extend(cache, Int32Array.from(window));
      }
    }
  } finally {
    model.device.releaseCache(cache);
  }
}
