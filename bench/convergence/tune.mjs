/** How often a search may go beyond its grid: the same for all modes. */
const extensionCountMax = 3;

/**
 * The rate with the lowest loss: the grid of `rates`, each twice the one before, carried on by factors of two for as long as the
 * best stands at its edge. `lossAt(rate)` gives Infinity for a run that diverged.
 * @returns {{ rate: number, tried: { rate: number, loss: number }[], isInside: boolean }} `isInside`: not at the edge of what was tried
 */
export async function tunedRate(rates, lossAt) {
  const tryAt = async (rate) => ({ rate, loss: await lossAt(rate) });
  let tried = await Promise.all(rates.map(tryAt));
  for (let extension = 0; extension < extensionCountMax; extension++) {
    const next = beyondTheEdge(tried);
    if (next === null) break;
    tried = [...tried, await tryAt(next)].sort((one, other) => one.rate - other.rate);
  }
  const best = bestOf(tried);
  if (best.loss === Infinity) throw new Error(`Every rate diverged: ${tried.map(({ rate }) => rate)}`);
  return { rate: best.rate, tried, isInside: beyondTheEdge(tried) === null };
}

function bestOf(tried) {
  return tried.reduce((best, one) => (one.loss < best.loss ? one : best));
}

function beyondTheEdge(tried) {
  const { rate } = bestOf(tried);
  if (rate === tried[0].rate) return rate / 2;
  return rate === tried.at(-1).rate ? rate * 2 : null;
}
