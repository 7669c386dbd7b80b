import { fastestOf, triedModes } from './modes.mjs';
import { fullRankRecipe, reloraRecipe, stepOf } from './recipe.mjs';
import { batchShape, modeOf, nameOf } from './sides/sides.mjs';
import { none, table, times } from './table.mjs';
import { openText, vocabSize } from './text.mjs';

export const name = 'timeToLoss';
export const title = "Wall clock to PyTorch full-rank's final held-out loss on real text";
export const isFull = true;

const model = { preset: 'demo', vocabSize };
const stepCount = 400;
const peak = 2e-3;
const evaluateEveryStepCount = 10;
const heldOutTokenCount = 16_384;

export async function run(session) {
  if (session.pytorch.command === null) return { failure: session.pytorch.reason };
  const text = await openText(batchShape);
  const runs = [];
  try {
    for (const wanted of await sidesOf(session)) {
      const side = { ...model, ...batchShape, rank: 0, ...wanted };
      runs.push({ side, child: await session.open(side), seconds: 0, curve: [] });
    }
    const heldOut = await text.heldOut(heldOutTokenCount);
    await trainAll(session, runs, text, heldOut);
  } finally {
    await Promise.all(runs.map(({ child }) => child.close()));
    await text.close();
  }
  return { failure: null, ...compared(runs) };
}

/** PyTorch in its fastest mode, and in the fastest that keeps float32 weights; ours full-rank and by ReLoRA. */
async function sidesOf(session) {
  const tried = await triedModes(session, 'pytorch', 0, model);
  const keepingWeights = tried.filter(({ mode }) => mode.precision !== 'bfloat16');
  const modes = new Set([fastestOf(tried), fastestOf(keepingWeights)].map(({ mode }) => mode));
  const { mode } = fastestOf(await triedModes(session, 'relora', 0, model));
  const sides = [...modes].map((mode) => ({
    engine: 'pytorch',
    label: `PyTorch full-rank, ${modeOf(mode)}`,
    recipe: fullRankRecipe({ stepCount, peak }),
    ...mode,
  }));
  // A few steps more than PyTorch: with as many, chance decides which of two equal curves ends lower.
  sides.push({
    engine: 'relora',
    label: `ours full-rank, ${modeOf(mode)}`,
    recipe: fullRankRecipe({ stepCount: 1.05 * stepCount, peak }),
    ...mode,
  });
  for (const precision of [mode.precision, 'int8Base'])
    sides.push({
      engine: 'relora',
      label: `ours ReLoRA r=24, ${precision}`,
      recipe: reloraRecipe({
        stepCount: 1.25 * stepCount,
        peak,
        rank: 24,
        adapterPeak: 4e-3,
        warmStartStepCount: 0.75 * stepCount,
        cycleStepCount: 0.125 * stepCount,
      }),
      precision,
    });
  return sides;
}

/** All sides in turn, step by step, on the same batches, until each has taken all steps of its recipe. */
async function trainAll(session, runs, text, heldOut) {
  const last = Math.max(...runs.map(({ recipe }) => recipe.stepCount));
  for (let step = 0; step <= last; step++) {
    const batch = await text.batchOf(step);
    for (const run of runs) {
      const isEnd = step === run.side.recipe.stepCount;
      if (step > run.side.recipe.stepCount) continue;
      if (isEnd || step % evaluateEveryStepCount === 0)
        run.curve.push({ step, seconds: run.seconds, loss: await heldOutLoss(run.child, heldOut) });
      if (!isEnd) run.seconds += (await stepOf(run.child, run.side.recipe, step, batch)).seconds;
    }
    if (step % 50 === 0)
      session.say(`  step ${step}: ${runs.map(({ curve }) => curve.at(-1).loss.toFixed(3))}`);
  }
}

async function heldOutLoss(child, heldOut) {
  let [sum, count] = [0, 0];
  for (const batch of heldOut) {
    const part = await child.ask({ evaluate: batch });
    sum += part.sum;
    count += part.count;
  }
  return sum / count;
}

/** The target is the lower of PyTorch's final losses, with the time of the side that reached it. */
function compared(runs) {
  const finished = runs.map(({ side, seconds, curve }) => ({
    ...side,
    seconds,
    curve,
    finalLoss: curve.at(-1).loss,
  }));
  const [reference] = finished
    .filter(({ engine }) => engine === 'pytorch')
    .sort((a, b) => a.finalLoss - b.finalLoss);
  return {
    reference,
    runs: finished.map((run) => {
      const reached = run.curve.find(({ loss }) => loss <= reference.finalLoss) ?? null;
      return { ...run, reached, ratio: reached === null ? null : reached.seconds / reference.seconds };
    }),
  };
}

export function report({ failure, runs, reference }) {
  if (failure !== null) return `Not available: ${failure}`;
  const rows = runs.map(({ label, recipe, seconds, finalLoss, reached, ratio }) => [
    label,
    recipe.stepCount,
    seconds.toFixed(1),
    finalLoss.toFixed(4),
    reached === null ? 'not reached' : `${reached.seconds.toFixed(1)} s, ${reached.step} steps`,
    ratio === null ? none : times(ratio),
  ]);
  return `The demo's model on its text, 2048 tokens a step, the same batches, rates and kind of initial weights for all, in turn step by step. The clock
counts training steps and merges. The target is the lower final loss of PyTorch: ${reference.finalLoss.toFixed(4)} after ${reference.seconds.toFixed(1)} s (${nameOf(reference)}, ${modeOf(reference)}),
on ${heldOutTokenCount} held-out tokens.

${table(['run', 'steps', 'seconds in all', 'final held-out loss', 'at the target', 'time to it'], rows)}`;
}

export function plots({ failure, runs }) {
  if (failure !== null) return [];
  return [
    {
      title: 'Held-out loss, nats, by seconds of training',
      lines: runs.map(({ label, curve }) => ({
        label,
        points: curve.filter(({ step }) => step > 0).map(({ seconds, loss }) => [seconds, loss]),
      })),
    },
  ];
}
