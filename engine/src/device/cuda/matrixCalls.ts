import type { DeviceBuffer } from '../device.js';
import { DropoutPlaces } from './dropoutPlaces.js';
import { Scope } from './scope.js';
import { newMatrix, tight, withoutCodes, type Matrix } from './matrix.js';
import { ProductCalls } from './productCalls.js';
import { newQuantized } from './quantized.js';

/** Kernels on matrices, and parameters in the type of products. */
export class MatrixCalls extends ProductCalls {
  readonly places = new DropoutPlaces(this.memory);

  /**
   * A float32 parameter in the type of products: rounded if it has changed; the copy is kept. The update of a parameter also writes the
   * rounded copy (`adamW`), so a step has nothing to round.
   */
  half(buffer: DeviceBuffer, rows: number, columns: number, field: string): Matrix {
    const floats = this.memory.floats(buffer, rows * columns, field);
    const kept = this.memory.halfOf(buffer) ?? this.newHalf(buffer, rows, columns);
    if (kept.isStale) {
      this.copy(kept.matrix, tight(floats, rows, columns));
      kept.hasCodes = false;
    }
    kept.isStale = false;
    return kept.hasCodes ? kept.matrix : withoutCodes(kept.matrix);
  }

  /** Where code that writes the buffer should also put the copy that products read, so that nothing has to be rounded afterwards. */
  written(buffer: DeviceBuffer, rows: number, columns: number, withCodes: boolean): Matrix {
    const kept = this.memory.halfOf(buffer) ?? this.newHalf(buffer, rows, columns, withCodes);
    kept.isStale = false;
    kept.hasCodes = withCodes;
    return withCodes ? kept.matrix : withoutCodes(kept.matrix);
  }

  private newHalf(buffer: DeviceBuffer, rows: number, columns: number, withCodes = false) {
    const scope = new Scope(this.memory);
    const plain = newMatrix(scope, rows, columns, 'bf16');
    const matrix = withCodes ? { ...plain, codes: newQuantized(scope, plain) } : plain;
    return this.memory.keepHalf(buffer, matrix, () => scope.end());
  }
}
