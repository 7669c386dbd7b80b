import { expect } from 'vitest';
import type { BasePrecision, ProductPrecision } from '../../engine/dist/device/cpu/nativeAddon.js';
import { excess, seededArray } from './nativeReference.js';

// Ones, and sizes around those of a vector, a register tile or a panel on some instruction set.
const edges = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65];
// A NaN that no kernel produces: reading it spoils the result, overwriting it is detected.
const guard = 0x7fa5a5a5;

/**
 * Draws sizes, numbers and arrays for a kernel call, the same for the same seed. Every array has an arbitrary alignment and guards on both
 * sides.
 */
export class Draw {
  private state: number;
  private readonly outputs: { name: string; words: Uint32Array; begin: number; end: number }[] = [];
  private readonly said: string[] = [];

  constructor(
    readonly seed: number,
    /** Additional information for the message when a call fails. */
    private readonly circumstances: string,
  ) {
    this.state = Math.imul(seed, 0x9e3779b1) >>> 0;
  }

  /** An integer in [0, end). */
  below(end: number): number {
    this.state = (Math.imul(this.state, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.state / 2 ** 32) * end);
  }

  of<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!;
  }

  /** Half of them edge cases, half any number up to `most`; `more` are edge cases for this dimension only. */
  size(name: string, most = 70, more: number[] = []): number {
    const all = [...edges, ...more, ...more].filter((edge) => edge <= most);
    return this.say(name, this.below(2) === 0 ? this.of(all) : 1 + this.below(most));
  }

  say<T>(name: string, value: T): T {
    this.said.push(`${name} ${value}`);
    return value;
  }

  precision(): ProductPrecision {
    return this.say('precision', this.of(['float32', 'bfloat16'] as const));
  }

  basePrecision(): BasePrecision {
    return this.say('base', this.of(['float32', 'bfloat16', 'int8'] as const));
  }

  floats(length: number, scale = 1): Float32Array {
    return this.between(seededArray(length, this.below(2 ** 20), scale)).array;
  }

  ids(length: number, least: number, end: number): Int32Array {
    return Int32Array.from({ length }, () => least + this.below(end - least));
  }

  /** An output array, filled with guards: an entry that is not written shows as NaN. */
  output(name: string, length: number): Float32Array {
    return this.written(name, new Float32Array(new Uint32Array(length).fill(guard).buffer));
  }

  /** An array to be modified in place. */
  inPlace(name: string, values: Float32Array): Float32Array {
    return this.written(name, values);
  }

  private written(name: string, values: Float32Array): Float32Array {
    const { array, words, begin, end } = this.between(values);
    this.outputs.push({ name, words, begin, end });
    return array;
  }

  private between(values: Float32Array) {
    const begin = 1 + this.below(40);
    const end = begin + values.length;
    const words = new Uint32Array(end + 40).fill(guard);
    words.set(new Uint32Array(values.buffer, values.byteOffset, values.length), begin);
    return { array: new Float32Array(words.buffer, 4 * begin, values.length), words, begin, end };
  }

  agree(
    name: string,
    actual: ArrayLike<number>,
    expected: ArrayLike<number>,
    tolerance: (index: number) => number,
  ): void {
    const over = excess(actual, expected, tolerance);
    if (!(over <= 0)) throw new Error(`${name} is ${over} further off than allowed with ${this.toString()}`);
  }

  /** Bit for bit. */
  same(name: string, actual: Float32Array, expected: Float32Array): void {
    const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
    expect(bits(actual).equals(bits(expected)), `the bits of ${name}, with ${this.toString()}`).toBe(true);
  }

  /** Everything written, as bytes; checks that nothing else was written. */
  results(): Buffer[] {
    for (const { name, words, begin, end } of this.outputs) {
      const broken = words.findIndex((word, index) => (index < begin || index >= end) && word !== guard);
      expect(broken, `written at ${broken - begin} of ${name}, with ${this.toString()}`).toBe(-1);
    }
    return this.outputs.map(({ words, begin, end }) =>
      Buffer.from(words.buffer, 4 * begin, 4 * (end - begin)),
    );
  }

  toString(): string {
    return [`seed ${this.seed}`, this.circumstances, ...this.said].join(', ');
  }
}
