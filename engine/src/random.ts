import { createHash } from 'node:crypto';

/**
 * Seeded generator: xoshiro128** (Blackman and Vigna 2018), its state derived from a name. Every draw is a pure function of seed and stream
 * name, so neither the order of layers nor a resumed run changes any number.
 */
export class Random {
  private constructor(
    private a: number,
    private b: number,
    private c: number,
    private d: number,
  ) {}

  /** The stream with this name, for example `forStream(seed, 'adapter', layerName, restart)`. */
  static forStream(seed: number, ...path: (string | number)[]): Random {
    // JSON keeps ('a', 1), ('a', '1') and ('a1') apart. With a 256-bit hash, streams do not collide in practice.
    const digest = createHash('sha256')
      .update(JSON.stringify([seed, ...path]))
      .digest();
    const random = new Random(
      digest.readInt32LE(0),
      digest.readInt32LE(4),
      digest.readInt32LE(8),
      digest.readInt32LE(12),
    );
    if ((random.a | random.b | random.c | random.d) === 0) random.a = 1; // the one state xoshiro cannot leave
    return random;
  }

  /** Uniform over 0 .. 2^32 - 1. */
  uint32(): number {
    const product = Math.imul(this.b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9);
    const shifted = this.b << 9;
    this.c ^= this.a;
    this.d ^= this.b;
    this.b ^= this.c;
    this.a ^= this.d;
    this.c ^= shifted;
    this.d = (this.d << 11) | (this.d >>> 21);
    return result >>> 0;
  }

  /** Uniform in [0, 1), with all 53 bits of a double's mantissa. */
  uniform(): number {
    const high = this.uint32() >>> 5;
    const low = this.uint32() >>> 6;
    return (high * 67_108_864 + low) / 9_007_199_254_740_992;
  }

  /** Uniform in [low, high). */
  fillUniform(array: Float32Array, low: number, high: number): void {
    // 24 bits, the mantissa of a float32.
    const step = (high - low) / 16_777_216;
    for (let i = 0; i < array.length; i++) array[i] = low + step * (this.uint32() >>> 8);
  }

  /** Normal with mean 0 and standard deviation `std`. */
  fillNormal(array: Float32Array, std: number): void {
    for (let i = 0; i < array.length; i += 2) {
      const radius = std * Math.sqrt(-2 * Math.log((this.uint32() + 0.5) / 4_294_967_296));
      const angle = (this.uint32() / 4_294_967_296) * 2 * Math.PI;
      array[i] = radius * Math.cos(angle);
      if (i + 1 < array.length) array[i + 1] = radius * Math.sin(angle);
    }
  }

  /** Zero with probability `dropped`, else 1 / (1 - dropped): a mask that keeps the mean. */
  fillDropoutMask(array: Float32Array, dropped: number): void {
    const threshold = dropped * 4_294_967_296;
    const kept = 1 / (1 - dropped);
    for (let i = 0; i < array.length; i++) array[i] = this.uint32() < threshold ? 0 : kept;
  }
}
