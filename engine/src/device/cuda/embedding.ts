import type { TableShape } from '../device.js';
import { Scope } from './cardMemory.js';
import type { MatrixCalls } from './matrixCalls.js';

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

/** Rows that one block adds up at most; what occurs more often is added up in parts. */
const segmentRows = 64;

/** dtable is added to. Positions are sorted by id here, so that rows of one id are added in their order. */
export function embeddingBackward(
  calls: MatrixCalls,
  dtable: number,
  dy: number,
  ids: Int32Array,
  shape: TableShape,
): void {
  checkIds(ids, shape, 'embeddingBackward');
  const { hidden } = shape;
  const { rows, segments, long } = segmentsOf(ids, shape.vocabulary);
  const scope = new Scope(calls.memory);
  const upload = (values: Int32Array): number => {
    const at = scope.take(values.byteLength);
    calls.memory.card.upload(at, values);
    return at;
  };
  const partial = scope.take(4 * hidden * long.partialCount);
  calls.launch(
    {
      ...{ file: 'embedding', kernel: 'embedding_backward', grid: [segments.length / 4] as const },
      parameters: {
        ...{ dtable, dy, rows: upload(rows), segments: upload(Int32Array.from(segments)), partial },
        ...{ hidden, stride: hidden },
      },
    },
    'float',
  );
  if (long.ids.length > 0)
    calls.launch(
      {
        ...{ file: 'embedding', kernel: 'embedding_add_parts', grid: [long.ids.length / 3] as const },
        parameters: { dtable, partial, ids: upload(Int32Array.from(long.ids)), hidden },
      },
      'float',
    );
  scope.end();
}

/**
 * `rows`: places sorted by id, and of one id by their order. `segments`: [begin, end, id, where among the parts it goes or -1 for the
 * table itself] each. `long`: [id, begin, end] among the parts.
 */
function segmentsOf(ids: Int32Array, vocabulary: number) {
  const ends = new Int32Array(vocabulary + 1);
  for (const id of ids) ends[id + 1]!++;
  for (let id = 0; id < vocabulary; id++) ends[id + 1]! += ends[id]!;
  const begins = ends.slice();
  const rows = new Int32Array(ids.length);
  ids.forEach((id, row) => (rows[begins[id]!++] = row));
  const segments: number[] = [];
  const long = { ids: [] as number[], partialCount: 0 };
  for (let id = 0; id < vocabulary; id++) {
    const [begin, end] = [ends[id]!, ends[id + 1]!];
    const count = Math.ceil((end - begin) / segmentRows);
    if (count > 1) long.ids.push(id, long.partialCount, long.partialCount + count);
    for (let part = 0; part < count; part++) {
      const first = begin + part * segmentRows;
      segments.push(first, Math.min(first + segmentRows, end), id, count > 1 ? long.partialCount++ : -1);
    }
  }
  return { rows, segments, long };
}

function checkIds(ids: Int32Array, { rows, vocabulary }: TableShape, call: string): void {
  if (ids.length !== rows) throw new RangeError(`${call}: ids: expected ${rows}, got ${ids.length}`);
  const wrong = ids.find((id) => id < 0 || id >= vocabulary);
  if (wrong !== undefined)
    throw new RangeError(`${call}: ids: expected 0 to ${vocabulary - 1}, got ${wrong}`);
}
