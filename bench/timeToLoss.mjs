import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fastestOf, triedModes } from './modes.mjs';
import { fullRankRecipe, reloraRecipe, stepOf } from './recipe.mjs';
import { batchShape, modeOf, nameOf } from './sides/sides.mjs';
import { none, notAvailable, table, times } from './table.mjs';
import { openText, vocabSize } from './text.mjs';

export const name = 'timeToLoss';
export const title = "Wall clock to PyTorch full-rank's final held-out loss on real text";
export const isFull = true;

const model = { preset: 'demo', vocabSize };
const stepCount = 400;
/** The best of 5e-4, 7e-4, 1e-3, 2e-3 and 4e-3 for full-rank training over this many steps. */
const peak = 1e-3;
const warmUps = 3;
const evaluateEveryStepCount = 10;
const heldOutTokenCount = 16_384;

export async function run(session) {
  if (session.pytorch.command === null) return { failure: session.pytorch.reason };
  const text = await openText(batchShape);
  const runs = [];
  try {
    const heldOut = await text.heldOut(heldOutTokenCount);
    for (const wanted of await sidesOf(session)) {
      const side = { ...model, ...batchShape, rank: 0, ...wanted };
      runs.push({ side, child: null, seconds: 0, curve: [], failure: null });
    }
    await eachWorking(runs, async (run) => {
      run.child = await session.open(run.side);
    });
    await shareWeights(runs);
    await eachWorking(runs, async ({ child }) => warmUp(child, await text.batchOf(0)));
    await trainAll(session, runs, text, heldOut);
  } finally {
    await Promise.all(runs.map(({ child }) => child?.close()));
    await text.close();
  }
  return compared(runs);
}

/** PyTorch in its fastest mode, and in the fastest with float32 weights; ours full-rank and with ReLoRA. */
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
  // A few more steps than PyTorch: with the same number, chance decides which of two equal curves ends lower.
  sides.push({
    engine: 'relora',
    label: `ours full-rank, ${modeOf(mode)}`,
    recipe: fullRankRecipe({ stepCount: Math.round(1.05 * stepCount), peak }),
    ...mode,
  });
  for (const precision of [mode.precision, 'int8Base'])
    sides.push({
      engine: 'relora',
      label: `ours ReLoRA r=24, ${precision}`,
      recipe: reloraRecipe({
        stepCount: Math.round(1.25 * stepCount),
        peak,
        rank: 24,
        adapterPeak: 4e-3,
        warmStartStepCount: Math.round(0.75 * stepCount),
        cycleStepCount: Math.round(0.25 * stepCount),
      }),
      precision,
    });
  return sides;
}

/** One after another; a run that fails keeps the reason and is left out from then on. */
async function eachWorking(runs, act) {
  for (const run of runs.filter(({ failure }) => failure === null)) {
    try {
      await act(run);
    } catch (error) {
      run.failure = error.message;
    }
  }
}

/** All start from the weights of our first side; our other sides get them from the seed. */
async function shareWeights(runs) {
  const folder = mkdtempSync(join(tmpdir(), 'relora-bench-'));
  const path = join(folder, 'model.safetensors');
  try {
    await runs.find(({ side }) => side.engine === 'relora').child.ask({ save: { path } });
    await eachWorking(
      runs.filter(({ side }) => side.engine === 'pytorch'),
      ({ child }) => child.ask({ load: { path } }),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Compilation and page faults are not training: steps with a rate of 0 leave the weights of both sides unchanged. */
async function warmUp(child, batch) {
  for (let step = 0; step < warmUps; step++) await child.ask({ step: { ...batch, learningRate: 0 } });
}

/** Trains all sides alternately, step by step, on the same batches, until each has completed its recipe. */
async function trainAll(session, runs, text, heldOut) {
  const last = Math.max(...runs.map(({ side }) => side.recipe.stepCount));
  for (let step = 0; step <= last; step++) {
    const batch = await text.batchOf(step);
    await eachWorking(runs, async (run) => {
      const { child, side, seconds, curve } = run;
      const isEnd = step === side.recipe.stepCount;
      if (step > side.recipe.stepCount) return;
      if (isEnd || step % evaluateEveryStepCount === 0)
        curve.push({ step, seconds, loss: await heldOutLoss(child, heldOut) });
      if (!isEnd) run.seconds += (await stepOf(child, side.recipe, step, batch)).seconds;
    });
    if (step % 50 === 0) session.say(`  step ${step}: ${runs.map(lastLoss)}`);
  }
}

function lastLoss({ curve }) {
  return curve.at(-1)?.loss.toFixed(3) ?? none;
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
function compared(all) {
  const runs = all.map(({ side, seconds, curve, failure }) => ({ ...side, seconds, curve, failure }));
  const finished = runs.filter(({ failure }) => failure === null);
  const [reference] = finished
    .filter(({ engine }) => engine === 'pytorch')
    .sort((a, b) => finalLoss(a) - finalLoss(b));
  if (reference === undefined) return { failure: `PyTorch did not finish: ${runs[0].failure}` };
  for (const run of finished) {
    run.reached = run.curve.find(({ loss }) => loss <= finalLoss(reference)) ?? null;
    run.ratio = run.reached === null ? null : run.reached.seconds / reference.seconds;
  }
  return { failure: null, reference, runs };
}

function finalLoss({ curve }) {
  return curve.at(-1).loss;
}

export function report({ failure, runs, reference }) {
  if (failure !== null) return `Not available: ${failure}`;
  const cells = runs.filter((run) => run.failure === null).map(cellsOf);
  return `The demo's model on its text, 2048 tokens a step, the same batches, rates and initial weights for all, in turn step by step. The clock
counts training steps and merges, not compilation. The target is the lower final loss of PyTorch: ${finalLoss(reference).toFixed(4)} after ${reference.seconds.toFixed(1)} s (${nameOf(reference)}, ${modeOf(reference)}),
on ${heldOutTokenCount} held-out tokens.

${table(['run', 'steps', 'seconds in all', 'final held-out loss', 'at the target', 'time to it'], cells)}${notAvailable(runs)}`;
}

function cellsOf({ label, recipe, seconds, curve, reached, ratio }) {
  return [
    label,
    recipe.stepCount,
    seconds.toFixed(1),
    finalLoss({ curve }).toFixed(4),
    reached === null ? 'not reached' : `${reached.seconds.toFixed(1)} s, ${reached.step} steps`,
    ratio === null ? none : times(ratio),
  ];
}

export function plots({ failure, runs }) {
  if (failure !== null) return [];
  return [
    {
      title: 'Held-out loss, nats, by seconds of training',
      lines: runs
        .filter((run) => run.failure === null)
        .map(({ label, curve }) => ({
          label,
          points: curve.filter(({ step }) => step > 0).map(({ seconds, loss }) => [seconds, loss]),
        })),
    },
  ];
}
