import { batchShape, modeOf } from './sides/sides.mjs';
import { reloraRecipe, stepOf } from './recipe.mjs';
import { notAvailable, percent, table } from './table.mjs';
import { openText, vocabSize } from './text.mjs';

export const name = 'lossBand';
export const title = 'Loss of each precision against float32 on real text';
export const isFull = true;

/** A warm start, then three cycles: the curve includes merges and their effect on a quantized base. */
const recipe = reloraRecipe({
  stepCount: 200,
  peak: 2e-3,
  rank: 24,
  adapterPeak: 4e-3,
  warmStartStepCount: 50,
  cycleStepCount: 50,
});
/** Half before and half after a step. Losses differ much more between batches than between precisions. */
const smoothedStepCount = 20;
const modes = [
  { precision: 'bfloat16' },
  { precision: 'int8Base' },
  { precision: 'nf4Base' },
  { precision: 'float32', headPrecision: 'int8' },
  { precision: 'int8Base', headPrecision: 'int8' },
];

export async function run(session) {
  const text = await openText(batchShape);
  const runs = [{ label: 'float32', precision: 'float32' }];
  // The same arithmetic with another order of sums: shows how far curves diverge by rounding only.
  const isWider =
    session.addon.describe().instructionSets.includes('avx2') && /^(avx512|amx)/.test(session.instructionSet);
  if (isWider) runs.push({ label: 'float32 by avx2', precision: 'float32', instructionSet: 'avx2' });
  runs.push(...modes.map((mode) => ({ label: modeOf(mode), ...mode })));
  try {
    for (const run of runs) Object.assign(run, await curveOf(session, run, text));
  } finally {
    await text.close();
  }
  const reference = smoothed(runs[0].losses);
  return runs.map((run) => (run.failure === null ? { ...run, ...deviationsOf(run.losses, reference) } : run));
}

async function curveOf(session, { label, ...mode }, text) {
  session.say(`  training in ${label}`);
  let child;
  try {
    child = await session.open({
      engine: 'relora',
      preset: 'demo',
      vocabSize,
      rank: 0,
      ...batchShape,
      ...mode,
    });
    const losses = [];
    for (let step = 0; step < recipe.stepCount; step++)
      losses.push((await stepOf(child, recipe, step, await text.batchOf(step))).loss);
    return { losses, failure: null };
  } catch (error) {
    return { failure: error.message };
  } finally {
    await child?.close();
  }
}

/** Means over a window around each step; steps without a complete window are omitted. */
export function smoothed(losses) {
  const count = losses.length - smoothedStepCount + 1;
  return Array.from({ length: Math.max(0, count) }, (_, first) => {
    const window = losses.slice(first, first + smoothedStepCount);
    return window.reduce((sum, loss) => sum + loss, 0) / smoothedStepCount;
  });
}

/** Deviations from the reference, by step and in total; both curves are smoothed. */
export function deviationsOf(losses, reference) {
  const deviations = smoothed(losses).map((loss, index) => loss / reference[index] - 1);
  const sizes = deviations.map(Math.abs);
  return {
    deviations,
    largest: Math.max(...sizes),
    mean: sizes.reduce((sum, size) => sum + size, 0) / sizes.length,
  };
}

export function report(runs) {
  const cells = runs
    .filter(({ failure }) => failure === null)
    .map(({ label, losses, largest, mean, deviations }) => [
      label,
      smoothed(losses).at(-1).toFixed(4),
      percent(largest, 3),
      percent(mean, 3),
      percent(deviations.at(-1), 3),
    ]);
  return `The demo's model and text, ${recipe.stepCount} steps of 2048 tokens: a full-rank warm start of 50, then cycles of 50 at rank ${recipe.rank}, each ended by a
merge. Curves are means over ${smoothedStepCount} steps; deviations are relative to float32.

${table(['precision', 'last loss', 'largest deviation', 'mean', 'at the end'], cells)}${notAvailable(runs)}`;
}

export function plots(runs) {
  const drawn = runs.filter(({ failure }) => failure === null);
  const firstStep = smoothedStepCount / 2;
  const points = (values) => values.map((value, index) => [firstStep + index, value]);
  return [
    {
      title: 'Loss, nats, mean over 20 steps',
      lines: drawn.map(({ label, losses }) => ({ label, points: points(smoothed(losses)) })),
    },
    {
      title: 'Deviation from float32, percent',
      lines: drawn.map(({ label, deviations }) => ({
        label,
        points: points(deviations.map((deviation) => 100 * deviation)),
      })),
    },
  ];
}
