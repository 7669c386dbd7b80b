import type { Arithmetic, DeviceSpeed } from './deviceSpeed.js';
import { rankOf } from './layerMethod.js';
import { packedBytes } from './packedBytes.js';
import { linearShapes } from './parameters.js';
import type { RunSpec } from './runSpec.js';

/** Temporaries of updates by Muon and LoRA-Muon on processors: native/kernels/muon.cpp. */

/** Matrices whose products take fewer operations are each processed by a single thread (matrix_sign.h). */
const aloneOperationsMax = 2 ** 24;

type Processors = Pick<DeviceSpeed, 'instructionSet' | 'threadCount'>;
type Precision = Arithmetic['precision'];

/** The largest update of a step; 0 if its optimizer computes no signs. */
export function signBytes(
  { adapter, model, optimizer }: Pick<RunSpec, 'adapter' | 'model' | 'optimizer'>,
  device: Processors,
  precision: Precision,
): number {
  const shapes = linearShapes(model);
  if (adapter === null) {
    if (optimizer.fullRankOptimizer !== 'muon') return 0;
    return Math.max(
      ...Object.values(shapes).map(({ inFeatures, outFeatures }) =>
        muonBytes(inFeatures, outFeatures, device, precision),
      ),
    );
  }
  if (adapter.adapterOptimizer !== 'loraMuon') return 0;
  return Math.max(
    ...adapter.targetModules.map((module) =>
      loraMuonBytes({ ...shapes[module], rank: rankOf(adapter, module) }, device, precision),
    ),
  );
}

/** Two copies of a matrix and two squares of its smaller side, and a packed operand. */
export function muonBytes(rows: number, columns: number, device: Processors, precision: Precision): number {
  const [m, n] = [Math.min(rows, columns), Math.max(rows, columns)];
  const bytes = 8 * m * n + 8 * m * m + operandBytes(m, n, device, precision);
  return bytes * (m * m * n > aloneOperationsMax ? 1 : device.threadCount);
}

/** Each thread updates its own adapter: three copies of both factors, nine squares (two of them in float64), and a packed operand. */
export function loraMuonBytes(
  { inFeatures, outFeatures, rank }: Record<'inFeatures' | 'outFeatures' | 'rank', number>,
  device: Processors,
  precision: Precision,
): number {
  const operands = [inFeatures, outFeatures].flatMap((side) => [
    operandBytes(rank, side, device, precision),
    operandBytes(rank, side, device, 'float32'),
  ]);
  const floats = 3 * rank * (inFeatures + outFeatures) + 9 * rank * rank;
  return device.threadCount * (4 * floats + Math.max(...operands));
}

/** The largest right operand of a sign's products. */
function operandBytes(m: number, n: number, { instructionSet }: Processors, precision: Precision): number {
  const packed = (rows: number, columns: number): number =>
    packedBytes(rows, columns, instructionSet, precision);
  return Math.max(packed(n, m), packed(m, m), packed(m, n));
}
