import type { Layer } from '../device.js';
import { Scope } from './scope.js';
import { columnsOf, newMatrix, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { CardBase } from './packedBase.js';
import { quantized, transposed, type Quantized } from './quantized.js';

/**
 * Frozen weights of layers with the same input, in e4m3, stored twice: for y = x W with a scale per column of W, and for dx = dy Wᵀ with a
 * scale per row over all layers. Packed from the float32 weights, again when one of them has changed.
 */
export class E4m3Weights {
  private readonly scope: Scope;
  private forwards: Quantized | null = null;
  private backwards: Quantized | null = null;
  private versions: readonly number[] = [];

  constructor(
    private readonly calls: MatrixCalls,
    private readonly layers: readonly Layer[],
    private readonly inputWidth: number,
    private readonly offsets: readonly number[],
  ) {
    this.scope = new Scope(calls.memory);
    let left = layers.length;
    const release = () => {
      if (--left === 0) this.scope.end();
    };
    for (const { base } of layers) {
      (base as CardBase).release();
      Object.assign(base as CardBase, { holder: this, release });
    }
  }

  /** to[rows, columns of all layers] = x W + addend. */
  forward(to: Matrix, x: Matrix, addend: Matrix | null, temporary: Scope): void {
    this.pack();
    this.calls.e4m3Product(to, quantized(this.calls, x, temporary), this.forwards!, addend);
  }

  /** dx = dy Wᵀ. */
  backward(dx: Matrix, dy: Matrix, temporary: Scope): void {
    this.pack();
    this.calls.e4m3Product(dx, quantized(this.calls, dy, temporary), this.backwards!, null);
  }

  private pack(): void {
    const { calls, layers } = this;
    const versions = layers.map(({ base }) => (base as CardBase).version);
    if (versions.every((version, i) => version === this.versions[i])) return;
    const temporary = new Scope(calls.memory);
    const all = newMatrix(temporary, this.inputWidth, this.offsets.at(-1)!, 'float');
    calls.memory.card.fill(all.address, 0, 4 * all.rows * all.stride);
    layers.forEach(({ weight, inFeatures, outFeatures, name }, i) => {
      const from = calls.memory.stagedFloats(weight, inFeatures * outFeatures, name, temporary);
      const own = { ...columnsOf(all, this.offsets[i]!, outFeatures), rows: inFeatures };
      calls.copy(own, { ...own, address: from, stride: outFeatures });
    });
    this.scope.end();
    this.forwards = quantized(calls, transposed(calls, all, temporary), this.scope);
    this.backwards = quantized(calls, all, this.scope);
    temporary.end();
    this.versions = versions;
  }
}
