import { specOf } from './modes.mjs';
import { tuned } from './tune.mjs';

/**
 * Finds each mode's rate or scale on the first seed, then trains it with all seeds. Full rank comes first, since the others use its rate. A
 * seed determines initial weights and data order, the same for all modes.
 * @returns for each mode { mode, value, tried, isInside, spec, runs }, runs by seed
 */
export async function compare(plan, modes, seeds, runs) {
  const fullRank = modes.find(({ kind }) => kind === 'fullRank');
  if (fullRank === undefined) throw new Error('A comparison needs full rank, whose rate the others take');
  const reference = await compareOne(fullRank, fullRank.rates, (rate) => ({ rate }));
  const others = modes.filter((mode) => mode !== fullRank);
  return [
    reference,
    ...(await Promise.all(
      others.map((mode) => compareOne(mode, mode.scales, (scale) => ({ rate: reference.value, scale }))),
    )),
  ];

  async function compareOne(mode, values, choiceOf) {
    const specAt = (value, seed) => specOf(plan, mode, { ...choiceOf(value), seed });
    const train = (value, seed) => {
      const searched = fullRank === mode ? 'rate' : 'scale';
      return runs.train(specAt(value, seed), `${mode.label}, ${searched} ${value}, seed ${seed}`);
    };
    const found = await tuned(values, async (value) => finalLoss(await train(value, seeds[0])));
    return {
      ...found,
      mode,
      spec: specAt(found.value, seeds[0]),
      runs: await Promise.all(seeds.map((seed) => train(found.value, seed))),
    };
  }
}

export function finalLoss({ failure, curve }) {
  return failure === null ? curve.at(-1).loss : Infinity;
}
