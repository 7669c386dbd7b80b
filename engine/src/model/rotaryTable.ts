import type { Device, RotaryAngles } from '../device/device.js';
import type { RopeScaling } from '../plan/runSpec.js';

/**
 * Cosines and sines of every position, [positions, headDim / 2], for rotary embedding (Su and others 2021) in the half-split layout of
 * Hugging Face's Llama. Computed in float64 and rounded once.
 */
export function rotaryTable(
  positionCount: number,
  headDim: number,
  base: number,
  scaling: RopeScaling | null = null,
): { cos: Float32Array; sin: Float32Array } {
  const half = headDim / 2;
  const cos = new Float32Array(positionCount * half);
  const sin = new Float32Array(positionCount * half);
  const frequencies = Array.from({ length: half }, (_, pair) => {
    const frequency = base ** (-pair / half);
    return scaling === null ? frequency : scaled(frequency, scaling);
  });
  for (let position = 0; position < positionCount; position++) {
    for (let pair = 0; pair < half; pair++) {
      const angle = position * frequencies[pair]!;
      cos[position * half + pair] = Math.cos(angle);
      sin[position * half + pair] = Math.sin(angle);
    }
  }
  return { cos, sin };
}

/** The same in device memory. */
export function rotaryAngles(device: Device, ...table: Parameters<typeof rotaryTable>): RotaryAngles {
  const { cos, sin } = rotaryTable(...table);
  const held = (values: Float32Array) => {
    const buffer = device.alloc(values.length);
    device.upload(buffer, values);
    return buffer;
  };
  return { positionCount: table[0], cos: held(cos), sin: held(sin) };
}

/** Llama 3.1's scaling: long wavelengths are stretched by the factor, short ones are not, with a smooth transition in between. */
function scaled(frequency: number, scaling: RopeScaling): number {
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositionEmbeddings } = scaling;
  // Number of turns within the original maximum length.
  const turns = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
  const share = (turns - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
  const kept = Math.min(1, Math.max(0, share));
  return kept * frequency + ((1 - kept) * frequency) / factor;
}
