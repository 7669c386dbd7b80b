import type { HeadPass } from '../device.js';
import { Scope } from './cardMemory.js';
import type { CardResult } from './cardResult.js';
import { newMatrix, rowsOf, tight, typeOf, type Arithmetic, type MatrixCalls } from './matrix.js';

/** Logits of a chunk of rows take about as much; whole logits are never held. */
const chunkBytes = 2 ** 27;

/** Losses of rows, added to the result; gradients where they are wanted. */
export function headCrossEntropy(
  calls: MatrixCalls,
  result: CardResult,
  gradients: { readonly dx: number; readonly head: number } | null,
  { shape, x, head, targets, scale, firstRow }: HeadPass,
  arithmetic: Arithmetic,
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
  const headAddress = memory.floats(head, vocabulary * hidden, 'headCrossEntropy: head');
  const weights = calls.as(type, tight(headAddress, vocabulary, hidden), scope);
  const ids = scope.take(4 * rows);
  memory.card.upload(ids, targets);
  const losses = scope.take(4 * rows);
  const chunkRows = Math.max(128, Math.floor(chunkBytes / (4 * vocabulary) / 128) * 128);
  const logits = newMatrix(scope, Math.min(rows, chunkRows), vocabulary, 'float');
  const gradient = gradients && newMatrix(scope, logits.rows, vocabulary, type);
  for (let first = 0; first < rows; first += chunkRows) {
    const count = Math.min(chunkRows, rows - first);
    const of = rowsOf(inputs, first, count);
    calls.product({ ...logits, rows: count }, of, weights, { transposeB: true });
    calls.launch(
      {
        file: 'head',
        kernel: 'cross_entropy',
        grid: [count],
        parameters: {
          ...{ gradient: gradient?.address ?? 0, losses: losses + 4 * first, logits: logits.address },
          ...{ targets: ids + 4 * first, vocabulary, stride: logits.stride, scale },
        },
      },
      type,
    );
    if (gradients === null || gradient === null) continue;
    const dlogits = { ...gradient, rows: count };
    calls.product(rowsOf(tight(gradients.dx, rows, hidden), first, count), dlogits, weights);
    calls.product(tight(gradients.head, vocabulary, hidden), dlogits, of, {
      transposeA: true,
      adds: first > 0,
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
  const headAddress = memory.floats(head, vocabulary * hidden, 'headLogits: head');
  calls.product(
    tight(to, rows - firstRow, vocabulary),
    calls.as(type, rowsOf(all, firstRow, rows - firstRow), scope),
    calls.as(type, tight(headAddress, vocabulary, hidden), scope),
    { transposeB: true },
  );
  scope.end();
}
