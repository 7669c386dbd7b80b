import { Random } from '../random.js';
import type { Dropout, Layer } from './device.js';

/**
 * The mask of a layer's inputs [rows, in] for one micro-batch: zero with probability `share`, else 1 / (1 - share). Used by devices without
 * a mask kernel, and the reference for those with one.
 */
export function dropoutMask(mask: Float32Array, dropout: Dropout, layer: Layer, time: number): void {
  const { share } = dropout;
  const { version, seed, step, micro } = dropout.place;
  if (version === 1)
    return Random.forStream(seed, 'dropout', step, micro, layer.name).fillDropoutMask(mask, share);
  fillCounted(mask, dropout, layer, time);
}

/**
 * Version 2: Philox4x32-10 (Salmon and others 2011) keyed by the seed. Counter of element e of a sequence, e = position * in + feature: (e
 * >> 2, global sequence, step, layer's index), all modulo 2^32; word e & 3 of the result decides. An element is kept if its word is at
 * least share * 2^32.
 */
function fillCounted(
  mask: Float32Array,
  { share, place: { seed, step, firstSequence } }: Dropout,
  { index, inFeatures }: Layer,
  time: number,
): void {
  const threshold = share * 2 ** 32;
  const kept = 1 / (1 - share);
  const length = time * inFeatures;
  const words = new Uint32Array(4);
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0] as const;
  for (let begin = 0, sequence = firstSequence; begin < mask.length; begin += length, sequence++) {
    for (let element = 0; element < length; element += 4) {
      philox(words, [element >>> 2, sequence >>> 0, step >>> 0, index >>> 0], key);
      for (let word = 0; word < 4 && element + word < length; word++)
        mask[begin + element + word] = words[word]! < threshold ? 0 : kept;
    }
  }
}

/** Philox4x32-10. */
export function philox(
  result: Uint32Array,
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): void {
  let [a, b, c, d] = counter;
  let [left, right] = key;
  for (let round = 0; round < 10; round++) {
    const [highA, lowA] = multiply(0xd2511f53, a);
    const [highC, lowC] = multiply(0xcd9e8d57, c);
    a = (highC ^ b ^ left) >>> 0;
    b = lowC;
    c = (highA ^ d ^ right) >>> 0;
    d = lowA;
    left = (left + 0x9e3779b9) >>> 0;
    right = (right + 0xbb67ae85) >>> 0;
  }
  result[0] = a;
  result[1] = b;
  result[2] = c;
  result[3] = d;
}

/** High and low half of a product of two 32-bit integers. */
function multiply(x: number, y: number): [high: number, low: number] {
  const low = Math.imul(x, y) >>> 0;
  const [xLow, xHigh, yLow, yHigh] = [x & 0xffff, x >>> 16, y & 0xffff, y >>> 16];
  const middle = xHigh * yLow + ((xLow * yLow) >>> 16);
  const high = xHigh * yHigh + Math.floor(middle / 65536) + (((middle & 0xffff) + xLow * yHigh) >>> 16);
  return [high >>> 0, low];
}
