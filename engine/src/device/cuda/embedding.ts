import type { TableShape } from '../device.js';
import { Scope } from './scope.js';
import type { MatrixCalls } from './matrixCalls.js';

/** y[rows, hidden], contiguous floats, = the rows of the table at ids. */
export function embeddingForward(
  calls: MatrixCalls,
  y: number,
  table: number,
  ids: Int32Array,
  shape: TableShape,
): void {
  const { memory } = calls;
  const scope = new Scope(memory);
  const at = memory.fed(scope, 4 * ids.length, (to) => {
    checkIds(ids, shape, 'embeddingForward');
    memory.card.upload(to, ids);
  });
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

/** Most rows that one block sums; ids that occur more often are summed in parts. */
const segmentRows = 64;

/**
 * Adds to dtable. Positions are sorted by id on the host, so that rows of the same id are added in order. The numbers of segments and parts
 * launched are the maximum for that many rows, whatever the ids are; unneeded ones are empty.
 */
export function embeddingBackward(
  calls: MatrixCalls,
  dtable: number,
  dy: number,
  ids: Int32Array,
  shape: TableShape,
): void {
  const { rows, hidden, vocabulary } = shape;
  const { memory } = calls;
  const longMax = Math.floor(rows / (segmentRows + 1));
  const partsMax = longMax + Math.floor(rows / segmentRows);
  const segmentsMax = Math.min(rows, vocabulary) + Math.floor(rows / segmentRows);
  const scope = new Scope(memory);
  const places = { rows: 0, segments: 4 * rows, long: 4 * rows + 16 * segmentsMax };
  const at = memory.fed(scope, places.long + 12 * longMax, (to) => {
    checkIds(ids, shape, 'embeddingBackward');
    const words = new Int32Array(rows + 4 * segmentsMax + 3 * longMax);
    fillSegments(
      words.subarray(0, rows),
      words.subarray(rows, rows + 4 * segmentsMax),
      words.subarray(rows + 4 * segmentsMax),
      ids,
      vocabulary,
    );
    memory.card.upload(to, words);
  });
  const partial = scope.take(4 * hidden * partsMax);
  calls.launch(
    {
      ...{ file: 'embedding', kernel: 'embedding_backward', grid: [segmentsMax] as const },
      parameters: {
        ...{ dtable, dy, rows: at + places.rows, segments: at + places.segments, partial },
        ...{ hidden, stride: hidden },
      },
    },
    'float',
  );
  calls.launch(
    {
      ...{ file: 'embedding', kernel: 'embedding_add_parts', grid: [longMax] as const },
      parameters: { dtable, partial, ids: at + places.long, hidden },
    },
    'float',
  );
  scope.end();
}

/**
 * `rows`: positions sorted by id, in ascending order within an id. `segments`: [begin, end, id, index among the parts, or -1 if the segment
 * is added to the table directly]. `long`: [id, begin, end] among the parts. Unneeded entries stay zero, which means empty.
 */
function fillSegments(
  rows: Int32Array,
  segments: Int32Array,
  long: Int32Array,
  ids: Int32Array,
  vocabulary: number,
): void {
  const ends = new Int32Array(vocabulary + 1);
  for (const id of ids) ends[id + 1]!++;
  for (let id = 0; id < vocabulary; id++) ends[id + 1]! += ends[id]!;
  const begins = ends.slice();
  ids.forEach((id, row) => (rows[begins[id]!++] = row));
  let [segment, longs, parts] = [0, 0, 0];
  for (let id = 0; id < vocabulary; id++) {
    const [begin, end] = [ends[id]!, ends[id + 1]!];
    const count = Math.ceil((end - begin) / segmentRows);
    if (count > 1) long.set([id, parts, parts + count], 3 * longs++);
    for (let part = 0; part < count; part++) {
      const first = begin + part * segmentRows;
      segments.set([first, Math.min(first + segmentRows, end), id, count > 1 ? parts++ : -1], 4 * segment++);
    }
  }
}

function checkIds(ids: Int32Array, { rows, vocabulary }: TableShape, call: string): void {
  if (ids.length !== rows) throw new RangeError(`${call}: ids: expected ${rows}, got ${ids.length}`);
  const wrong = ids.find((id) => id < 0 || id >= vocabulary);
  if (wrong !== undefined)
    throw new RangeError(`${call}: ids: expected 0 to ${vocabulary - 1}, got ${wrong}`);
}
