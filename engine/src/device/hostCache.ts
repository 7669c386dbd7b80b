import type { AttentionShape, KeyValueCache } from './device.js';

/** Keys and values of the ids of one sequence so far, so that only new ids are computed. */
export class HostCache implements KeyValueCache {
  length = 0;
  private readonly keys: Float32Array[];
  private readonly values: Float32Array[];

  constructor(
    blockCount: number,
    private readonly positionsMax: number,
    private readonly rowSize: number,
  ) {
    const rows = () => Array.from({ length: blockCount }, () => new Float32Array(positionsMax * rowSize));
    this.keys = rows();
    this.values = rows();
  }

  /** Appends rows for one block. `length` grows when all blocks have theirs. */
  append(block: number, k: Float32Array, v: Float32Array, rowSize: number): void {
    const end = this.length + k.length / rowSize;
    if (end > this.positionsMax)
      throw new RangeError(`The cache holds ${this.positionsMax} positions, ${end} were asked for`);
    this.keys[block]!.set(k, this.length * this.rowSize);
    this.values[block]!.set(v, this.length * this.rowSize);
  }

  /**
   * Attention of the new rows q[time, heads * headDim], whose keys were just appended, over everything cached. In plain loops: the few rows
   * of one new id are too little work to be worth a kernel call.
   */
  attend(
    block: number,
    q: Float32Array,
    { time, heads, kvHeads, headDim }: AttentionShape,
    out: Float32Array,
  ): Float32Array {
    const keys = this.keys[block]!;
    const values = this.values[block]!;
    const weights = new Float64Array(this.length + time);
    const { rowSize } = this;
    const scale = 1 / Math.sqrt(headDim);
    out.fill(0);
    for (let row = 0; row < time; row++) {
      const past = this.length + row + 1;
      for (let head = 0; head < heads; head++) {
        const query = (row * heads + head) * headDim;
        const keyHead = Math.floor((head * kvHeads) / heads) * headDim;
        let largest = -Infinity;
        for (let position = 0; position < past; position++) {
          const key = position * rowSize + keyHead;
          let score = 0;
          for (let i = 0; i < headDim; i++) score += q[query + i]! * keys[key + i]!;
          weights[position] = score * scale;
          largest = Math.max(largest, score * scale);
        }
        let total = 0;
        for (let position = 0; position < past; position++)
          total += weights[position] = Math.exp(weights[position]! - largest);
        for (let position = 0; position < past; position++) {
          const value = position * rowSize + keyHead;
          const weight = weights[position]! / total;
          for (let i = 0; i < headDim; i++) out[query + i]! += weight * values[value + i]!;
        }
      }
    }
    return out;
  }
}
