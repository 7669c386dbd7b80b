import type { KeyValueCache } from '../device.js';
import type { CardMemory } from './cardMemory.js';
import { Scope } from './scope.js';
import { newMatrix, rowsOf, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** Keys and values of the ids of one sequence so far, in float32. */
export class CardCache implements KeyValueCache {
  length = 0;
  private readonly scope: Scope;
  private readonly blocks: { readonly k: Matrix; readonly v: Matrix }[];

  constructor(
    memory: CardMemory,
    blockCount: number,
    private readonly positionsMax: number,
    width: number,
  ) {
    this.scope = new Scope(memory);
    const made = () => newMatrix(this.scope, positionsMax, width, 'float');
    this.blocks = Array.from({ length: blockCount }, () => ({ k: made(), v: made() }));
  }

  /** Appends rows for one block; `length` grows when all blocks have theirs. Returns all rows of the block. */
  append(calls: MatrixCalls, block: number, k: Matrix, v: Matrix): { k: Matrix; v: Matrix } {
    const end = this.length + k.rows;
    if (end > this.positionsMax)
      throw new RangeError(`The cache holds ${this.positionsMax} positions, ${end} were asked for`);
    const held = this.blocks[block]!;
    calls.copy(rowsOf(held.k, this.length, k.rows), k);
    calls.copy(rowsOf(held.v, this.length, v.rows), v);
    return held;
  }

  release(): void {
    this.scope.end();
  }
}
