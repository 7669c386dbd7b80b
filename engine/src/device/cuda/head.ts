import type { DeviceBuffer, HeadPass, TableShape } from '../device.js';
import { Scope } from './scope.js';
import type { CardResult } from './cardResult.js';
import { bytesOf, newMatrix, rowsOf, tight, typeOf, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** Limits on how much of the logits is in memory at a time. */
export interface HeadLimits {
  /** Bytes of logits in float32: few enough to be read again from the card's cache. */
  readonly logitBytes: number;
  /** Bytes of their gradients, in the type that products read. */
  readonly gradientBytes: number;
  /** Elements of dx per product: enough tiles to fill a card. */
  readonly tileElements: number;
}

const headLimits: HeadLimits = { logitBytes: 2 ** 25, gradientBytes: 2 ** 29, tileElements: 2 ** 22 };

/** Adds the losses of rows to the result; computes gradients if requested. */
export function headCrossEntropy(
  calls: MatrixCalls,
  result: CardResult,
  gradients: { readonly dx: number; readonly head: number } | null,
  { shape, x, head, targets, scale, firstRow }: HeadPass,
  arithmetic: Arithmetic,
  { logitBytes, gradientBytes, tileElements }: HeadLimits = headLimits,
): void {
  const { rows, vocabulary, hidden } = shape;
  const { memory } = calls;
  const type = typeOf(arithmetic);
  const scope = new Scope(memory);
  const inputs = calls.as(
    type,
    tight(memory.floats(x, rows * hidden, 'headCrossEntropy: x'), rows, hidden),
    scope,
  );
  const weights = headOf(calls, head, shape, arithmetic);
  const ids = memory.fed(scope, 4 * rows, (at) => memory.card.upload(at, targets));
  const losses = scope.take(4 * rows);
  const chunkOf = (most: number) => Math.min(rows, Math.max(128, Math.floor(most / 128) * 128));
  const fitting = Math.min(gradientBytes / (bytesOf[type] * vocabulary), tileElements / hidden);
  const outerRows = gradients === null ? rows : chunkOf(fitting);
  const innerRows = Math.min(outerRows, chunkOf(logitBytes / (bytesOf.float * vocabulary)));
  const logits = newMatrix(scope, innerRows, vocabulary, 'float');
  const all = gradients && newMatrix(scope, outerRows, vocabulary, type);
  for (let outer = 0; outer < rows; outer += outerRows) {
    const outerCount = Math.min(outerRows, rows - outer);
    for (let first = outer; first < outer + outerCount; first += innerRows) {
      const count = Math.min(innerRows, outer + outerCount - first);
      calls.product({ ...logits, rows: count }, rowsOf(inputs, first, count), weights, { transposeB: true });
      const own = all && rowsOf(all, first - outer, count);
      calls.launch(
        {
          ...{ file: 'head', kernel: 'cross_entropy', grid: [count] as const },
          parameters: {
            ...{ gradient: own?.address ?? 0, losses: losses + 4 * first, logits: logits.address },
            ...{ targets: ids + 4 * first, vocabulary, stride: logits.stride, scale },
            gradient_stride: own?.stride ?? 0,
          },
        },
        type,
      );
    }
    if (gradients === null || all === null) continue;
    const dlogits = { ...all, rows: outerCount };
    calls.product(rowsOf(tight(gradients.dx, rows, hidden), outer, outerCount), dlogits, weights);
    calls.product(tight(gradients.head, vocabulary, hidden), dlogits, rowsOf(inputs, outer, outerCount), {
      ...{ transposeA: true, adds: outer > 0 },
    });
  }
  result.addLosses(calls, losses, rows, scale, firstRow);
  scope.end();
}

export function headLogits(
  calls: MatrixCalls,
  to: number,
  { shape, x, head, firstRow }: Pick<HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
  arithmetic: Arithmetic,
): void {
  const { rows, vocabulary, hidden } = shape;
  const { memory } = calls;
  const scope = new Scope(memory);
  const all = tight(memory.floats(x, rows * hidden, 'headLogits: x'), rows, hidden);
  const type = typeOf(arithmetic);
  calls.product(
    tight(to, rows - firstRow, vocabulary),
    calls.as(type, rowsOf(all, firstRow, rows - firstRow), scope),
    headOf(calls, head, shape, arithmetic),
    { transposeB: true },
  );
  scope.end();
}

/** In the type of products; its own update rounds it. */
function headOf(
  calls: MatrixCalls,
  head: DeviceBuffer,
  { vocabulary, hidden }: TableShape,
  arithmetic: Arithmetic,
): Matrix {
  if (arithmetic === 'bfloat16') return calls.half(head, vocabulary, hidden, 'head');
  return tight(calls.memory.floats(head, vocabulary * hidden, 'head'), vocabulary, hidden);
}
