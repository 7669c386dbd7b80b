/** How often a search may extend its grid: the same for all modes. */
const extensionCountMax = 3;

/**
 * The value of a setting with the lowest loss. `values` is a grid, each value twice the one before; it is extended by factors of two as
 * long as the best value is at its edge. `lossAt(value)` returns Infinity for a run that diverged.
 * @returns {{ value: number, tried: { value: number, loss: number }[], isInside: boolean }} `isInside`: not at the edge of what was tried
 */
export async function tuned(values, lossAt) {
  const tryAt = async (value) => ({ value, loss: await lossAt(value) });
  let tried = await Promise.all(values.map(tryAt));
  for (let extension = 0; extension < extensionCountMax; extension++) {
    const next = beyondTheEdge(tried);
    if (next === null) break;
    tried = [...tried, await tryAt(next)].sort((one, other) => one.value - other.value);
  }
  const best = bestOf(tried);
  if (best.loss === Infinity) throw new Error(`Every value diverged: ${tried.map(({ value }) => value)}`);
  return { value: best.value, tried, isInside: beyondTheEdge(tried) === null };
}

function bestOf(tried) {
  return tried.reduce((best, one) => (one.loss < best.loss ? one : best));
}

function beyondTheEdge(tried) {
  const { value } = bestOf(tried);
  if (value === tried[0].value) return value / 2;
  return value === tried.at(-1).value ? value * 2 : null;
}
