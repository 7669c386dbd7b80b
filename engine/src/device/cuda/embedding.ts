import type { TableShape } from '../device.js';
import { Scope } from './cardMemory.js';
import type { MatrixCalls } from './matrix.js';

/** y[rows, hidden], floats one after the other, = the rows of the table at ids. */
export function embeddingForward(
  calls: MatrixCalls,
  y: number,
  table: number,
  ids: Int32Array,
  shape: TableShape,
): void {
  checkIds(ids, shape, 'embeddingForward');
  const scope = new Scope(calls.memory);
  const at = scope.take(4 * ids.length);
  calls.memory.card.upload(at, ids);
  calls.launch(
    {
      file: 'embedding',
      kernel: 'embedding_forward',
      grid: [ids.length],
      parameters: { y, table, ids: at, hidden: shape.hidden, stride: shape.hidden },
    },
    'float',
  );
  scope.end();
}

/** dtable is added to. Positions are sorted by id here, so that one block adds the rows of one id in their order. */
export function embeddingBackward(
  calls: MatrixCalls,
  dtable: number,
  dy: number,
  ids: Int32Array,
  shape: TableShape,
): void {
  checkIds(ids, shape, 'embeddingBackward');
  const rows = Int32Array.from(ids, (_, row) => row).sort(
    (one, other) => ids[one]! - ids[other]! || one - other,
  );
  const begins: number[] = [];
  rows.forEach((row, place) => {
    if (place === 0 || ids[row] !== ids[rows[place - 1]!]) begins.push(place);
  });
  const found = Int32Array.from(begins, (place) => ids[rows[place]!]!);
  const scope = new Scope(calls.memory);
  const upload = (values: Int32Array): number => {
    const at = scope.take(values.byteLength);
    calls.memory.card.upload(at, values);
    return at;
  };
  calls.launch(
    {
      file: 'embedding',
      kernel: 'embedding_backward',
      grid: [found.length],
      parameters: {
        ...{ dtable, dy, rows: upload(rows), begins: upload(Int32Array.from([...begins, rows.length])) },
        ...{ ids: upload(found), hidden: shape.hidden, stride: shape.hidden },
      },
    },
    'float',
  );
  scope.end();
}

function checkIds(ids: Int32Array, { rows, vocabulary }: TableShape, call: string): void {
  if (ids.length !== rows) throw new RangeError(`${call}: ids: expected ${rows}, got ${ids.length}`);
  const wrong = ids.find((id) => id < 0 || id >= vocabulary);
  if (wrong !== undefined)
    throw new RangeError(`${call}: ids: expected 0 to ${vocabulary - 1}, got ${wrong}`);
}
