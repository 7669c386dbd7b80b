import type { DeviceBuffer, Layer, LayerAdapter } from '../device.js';
import type { LinearPass } from './linear.js';
import { newMatrix, tight, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { packedBase } from './packedBase.js';
import type { Scope } from './scope.js';

/** Operands of one layer's products: its weight, its factors, its scale. */

/** A constant, or the address of tanh(g). */
export function scaleOf(
  calls: MatrixCalls,
  { scale }: LayerAdapter,
  temporary: Scope,
): { scale: number; factor: number | null } {
  if (typeof scale === 'number') return { scale, factor: null };
  const factor = temporary.take(4);
  calls.launch(
    {
      file: 'elementwise',
      kernel: 'adapter_scale',
      grid: [1],
      parameters: { factor, g: calls.memory.floats(scale, 1, 'scale') },
    },
    'float',
  );
  return { scale: 1, factor };
}

/** A float32 parameter in the type of products. */
function operand(
  calls: MatrixCalls,
  of: DeviceBuffer,
  [rows, columns]: readonly [rows: number, columns: number],
  { arithmetic }: Pick<LinearPass, 'arithmetic'>,
  field: string,
  scope: Scope,
): Matrix {
  if (arithmetic !== 'float32') return calls.half(of, rows, columns, field);
  return tight(calls.memory.stagedFloats(of, rows * columns, field, scope), rows, columns);
}

export function factorA(
  calls: MatrixCalls,
  { inFeatures, name }: Layer,
  { a, rank }: LayerAdapter,
  pass: LinearPass,
  scope: Scope,
): Matrix {
  return operand(calls, a, [inFeatures, rank], pass, `${name}.a`, scope);
}

export function factorB(
  calls: MatrixCalls,
  { outFeatures, name }: Layer,
  { b, rank }: LayerAdapter,
  pass: LinearPass,
  scope: Scope,
): Matrix {
  return operand(calls, b, [rank, outFeatures], pass, `${name}.b`, scope);
}

export function weightOf(calls: MatrixCalls, layer: Layer, pass: LinearPass, temporary: Scope): Matrix {
  const { weight, inFeatures, outFeatures, name, adapter } = layer;
  const packed = pass.isProbe ? null : packedBase(calls, layer, pass.arithmetic);
  if (packed === null) return operand(calls, weight, [inFeatures, outFeatures], pass, name, temporary);
  const isMerged = adapter !== null && adapter.graph !== 'separate' && packed.type === 'bf16';
  if (!isMerged) return packed; // in float32 `packMerged` has merged the adapter into it
  const merged = newMatrix(temporary, inFeatures, outFeatures, 'bf16');
  const { scale } = scaleOf(calls, adapter, temporary);
  const [a, b] = [
    factorA(calls, layer, adapter, pass, temporary),
    factorB(calls, layer, adapter, pass, temporary),
  ];
  calls.product(merged, a, b, { scale, addend: packed });
  return merged;
}
