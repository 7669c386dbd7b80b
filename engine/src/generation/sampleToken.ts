import type { Random } from '../random.js';

export interface SamplingSettings {
  /** Divides the logits; 0 always takes the most likely id. */
  temperature: number;
  /** Draws from the k most likely ids; 0 for all. */
  topK: number;
  /** Draws from the most likely ids that together have this probability; 1 for all. */
  topP: number;
}

/** Draws one id from logits[vocabulary]. Among equally likely ids the lower ones rank first. */
export function sampleToken(logits: Float32Array, settings: SamplingSettings, random: Random): number {
  const best = likeliest(logits);
  if (settings.temperature === 0) return best;

  const weights = new Float64Array(logits.length);
  for (let id = 0; id < weights.length; id++) {
    weights[id] = Math.exp((logits[id]! - logits[best]!) / settings.temperature);
  }
  const { least, tiesKept, total } = cutOff(weights, settings);
  let ties = tiesKept;
  let rest = random.uniform() * total;
  let last = best;
  for (let id = 0; id < weights.length; id++) {
    const weight = weights[id]!;
    if (weight < least || (weight === least && ties-- <= 0)) continue;
    last = id;
    rest -= weight;
    if (rest < 0) return id;
  }
  return last; // reached only by rounding
}

/** The smallest weight that may be drawn, how many weights equal to it may be drawn, and the sum of all that may. */
function cutOff(
  weights: Float64Array,
  { topK, topP }: SamplingSettings,
): { least: number; tiesKept: number; total: number } {
  const rising = weights.slice().sort();
  const largest = (place: number) => rising[rising.length - 1 - place]!;
  let count = topK > 0 ? Math.min(topK, weights.length) : weights.length;
  let total = 0;
  for (let place = 0; place < count; place++) total += largest(place);
  if (topP < 1) {
    const wanted = topP * total;
    total = 0;
    for (let place = 0; place < count; place++) {
      total += largest(place);
      if (total >= wanted) count = place + 1;
    }
  }
  const least = largest(count - 1);
  let tiesKept = 0;
  while (tiesKept < count && largest(count - 1 - tiesKept) === least) tiesKept++;
  return { least, tiesKept, total };
}

function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id;
  return best;
}
