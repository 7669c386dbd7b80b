import {
  add,
  concat,
  mul,
  reshape,
  slice,
  sub,
  tensor,
  type Tensor2D,
  type Tensor4D,
} from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';
import type { RopeScaling } from '../plan/runSpec.js';

/** Cosines and sines of every position, [positions, headDim / 2]. */
export class RotaryTable {
  readonly cos: Float32Array;
  readonly sin: Float32Array;

  constructor(
    readonly positionCount: number,
    readonly headDim: number,
    base: number,
    scaling: RopeScaling | null = null,
  ) {
    const half = headDim / 2;
    this.cos = new Float32Array(positionCount * half);
    this.sin = new Float32Array(positionCount * half);
    const frequencies = Array.from({ length: half }, (_, pair) => {
      const frequency = base ** (-pair / half);
      return scaling === null ? frequency : scaled(frequency, scaling);
    });
    for (let position = 0; position < positionCount; position++) {
      for (let pair = 0; pair < half; pair++) {
        const angle = position * frequencies[pair]!;
        this.cos[position * half + pair] = Math.cos(angle);
        this.sin[position * half + pair] = Math.sin(angle);
      }
    }
  }
}

/** As Llama 3.1 has it: long wavelengths are stretched by the factor, short ones are not, and between is a smooth passage. */
function scaled(frequency: number, scaling: RopeScaling): number {
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositionEmbeddings } = scaling;
  // Turns within the length that the model knew before.
  const turns = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
  const share = (turns - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
  const kept = Math.min(1, Math.max(0, share));
  return kept * frequency + ((1 - kept) * frequency) / factor;
}

/** Where the rows of x[batch * time, heads * headDim] stand in their sequences. */
export interface RotaryShape {
  batch: number;
  time: number;
  heads: number;
  /** Position of the first row of each sequence. */
  firstPosition: number;
}

/**
 * Rotary embedding (Su and others 2021) in the half-split layout of Hugging Face's Llama: entry i of a head turns with
 * entry i + headDim / 2, by an angle that grows with the position.
 */
export function rotary(x: Tensor2D, table: RotaryTable, shape: RotaryShape): Tensor2D {
  const native = currentNative();
  return native === null ? plainRotary(x, table, shape) : nativeRotary(native, x, table, shape);
}

export function plainRotary(x: Tensor2D, table: RotaryTable, shape: RotaryShape): Tensor2D {
  const { batch, time, heads, firstPosition } = shape;
  const half = table.headDim / 2;
  const part = (values: Float32Array) =>
    tensor(values.slice(firstPosition * half, (firstPosition + time) * half), [1, time, 1, half], 'float32');
  const cos = part(table.cos);
  const sin = part(table.sin);
  const whole = reshape(x, [batch, time, heads, table.headDim]);
  const first = slice(whole, [0, 0, 0, 0], [batch, time, heads, half]);
  const second = slice(whole, [0, 0, 0, half], [batch, time, heads, half]);
  const turned = concat<Tensor4D>(
    [sub<Tensor4D>(mul(first, cos), mul(second, sin)), add<Tensor4D>(mul(second, cos), mul(first, sin))],
    3,
  );
  return reshape(turned, x.shape);
}

function nativeRotary(native: NativeBackend, x: Tensor2D, table: RotaryTable, shape: RotaryShape): Tensor2D {
  const { batch, time, heads, firstPosition } = shape;
  const turn = (from: Tensor2D, inverse: boolean) => {
    const to = native.output<Tensor2D>(from.shape);
    native.addon.rotary(
      to.values,
      native.array(from),
      table.cos,
      table.sin,
      batch,
      time,
      heads,
      table.headDim,
      firstPosition,
      inverse,
    );
    return to.tensor;
  };
  return fusedOp<Tensor2D>(
    native,
    [x],
    () => ({ value: turn(x, false), saved: [] }),
    (dy) => [turn(dy, true)],
  );
}
