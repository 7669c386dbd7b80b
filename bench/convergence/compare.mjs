import { specOf } from './modes.mjs';
import { tunedRate } from './tune.mjs';

/**
 * Finds each mode's rate on the first seed, then trains it with all seeds. Full rank comes first, since the warm starts of
 * the others take its rate. A seed decides initial weights and data order, alike for all modes.
 * @returns for each mode { mode, rate, tried, isInside, spec, runs }, runs by seed
 */
export async function compare(plan, modes, seeds, runs) {
  const fullRank = modes.find(({ kind }) => kind === 'fullRank');
  if (fullRank === undefined)
    throw new Error('A comparison needs full rank, whose rate the warm starts take');
  const reference = await tune(fullRank, 1, null);
  const others = modes.filter((mode) => mode !== fullRank);
  return await Promise.all([
    withAllSeeds(reference),
    ...others.map(async (mode) => withAllSeeds(await tune(mode, reference.rate, reference.rate))),
  ]);

  async function tune(mode, unitRate, warmStartRate) {
    const train = (rate, seed) => {
      const request = requestOf(plan, mode, { rate, warmStartRate, seed });
      return runs.train(request, `${mode.label}, rate ${rate.toPrecision(2)}, seed ${seed}`);
    };
    const rates = mode.rates.map((factor) => factor * unitRate);
    const tuned = await tunedRate(rates, async (rate) => finalLoss(await train(rate, seeds[0])));
    const { spec } = requestOf(plan, mode, { rate: tuned.rate, warmStartRate, seed: seeds[0] });
    return { mode, ...tuned, spec, train };
  }

  async function withAllSeeds({ train, ...tuned }) {
    return { ...tuned, runs: await Promise.all(seeds.map((seed) => train(tuned.rate, seed))) };
  }
}

/** Full rank's change is measured over the same steps as that of ReLoRA with the plan's warm start. */
function requestOf(plan, mode, choice) {
  const spec = specOf(plan, mode, choice);
  const changeFromStep = mode.kind === 'fullRank' ? plan.warmStartStepCount : spec.warmStart.stepCount;
  return { spec, changeFromStep };
}

export function finalLoss({ failure, curve }) {
  return failure === null ? curve.at(-1).loss : Infinity;
}
