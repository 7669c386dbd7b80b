import type { Random } from '../random.js';

export interface SamplingSettings {
  /** Divides the logits; 0 always takes the likeliest. */
  temperature: number;
  /** Draws among the k likeliest; 0 for all. */
  topK: number;
  /** Draws among the likeliest that together have this probability; 1 for all. */
  topP: number;
}

/** Draws one id from logits[vocabulary]. Ties go to the lower id, so the result does not depend on the sorting. */
export function sampleToken(logits: Float32Array, { temperature, topK, topP }: SamplingSettings, random: Random): number {
  if (temperature === 0) return likeliest(logits);
  const order = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const candidates = topK > 0 ? order.slice(0, topK) : order;
  const largest = logits[candidates[0]!]!;
  const weights = candidates.map((id) => Math.exp((logits[id]! - largest) / temperature));
  const kept = countWithin(weights, topP);
  let rest = random.uniform() * sumOf(weights, kept);
  for (let place = 0; place < kept; place++) {
    rest -= weights[place]!;
    if (rest < 0) return candidates[place]!;
  }
  return candidates[kept - 1]!; // what rounding leaves over
}

/** How many of the falling weights make up `share` of their sum: at least one. */
function countWithin(weights: number[], share: number): number {
  if (share >= 1) return weights.length;
  const wanted = share * sumOf(weights, weights.length);
  let sum = 0;
  for (let count = 0; count < weights.length; count++) {
    sum += weights[count]!;
    if (sum >= wanted) return count + 1;
  }
  return weights.length;
}

function sumOf(weights: number[], count: number): number {
  let sum = 0;
  for (let place = 0; place < count; place++) sum += weights[place]!;
  return sum;
}

function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id;
  return best;
}
