/**
 * Cosines and sines of each row, [rows, half], with positions counted from the beginning of each document; taken from those of each
 * position, [positions, half].
 */
export function documentAngles(
  { cos, sin }: Record<'cos' | 'sin', Float32Array>,
  documents: Int32Array,
  time: number,
  half: number,
): Record<'cos' | 'sin', Float32Array> {
  const of = (table: Float32Array): Float32Array => {
    const rows = new Float32Array(documents.length * half);
    documents.forEach((begin, row) => {
      const position = (row % time) - begin;
      rows.set(table.subarray(position * half, (position + 1) * half), row * half);
    });
    return rows;
  };
  return { cos: of(cos), sin: of(sin) };
}
