import { batchShape, kindOf, labelOf, modeOf, nameOf, oursModes, pytorchModes } from './sides/sides.mjs';
import { megabytes, milliseconds, notAvailable, table } from './table.mjs';

export const name = 'modes';
export const title = 'The fastest mode of each side, llama-60m';
export const isFull = false;

/** Enough to distinguish modes; modes that are compared later are measured again, alternately. */
const stepCount = 3;
const kinds = [0, 128];

export async function run(session) {
  const tried = [];
  for (const rank of kinds)
    for (const engine of ['relora', 'pytorch']) tried.push(...(await triedModes(session, engine, rank)));
  return tried;
}

/**
 * { precision, compile } of an engine's fastest step, full-rank or with adapters: PT* for PyTorch. Null if none of its modes works.
 * Determined once per session, at llama-60m unless `model` is another.
 */
export async function fastestMode(session, engine, rank, model = { preset: 'llama-60m' }) {
  const tried = await triedModes(session, engine, rank, model);
  return fastestOf(tried)?.mode ?? null;
}

/** Every mode of an engine with its seconds, or with the reason why it is not available. */
export async function triedModes(session, engine, rank, model = { preset: 'llama-60m' }) {
  const key = JSON.stringify([engine, rank > 0, model]);
  if (!session.tried.has(key)) session.tried.set(key, await tryAll(session, engine, rank, model));
  return session.tried.get(key);
}

export function fastestOf(tried) {
  const working = tried.filter(({ failure }) => failure === null);
  return working.sort((a, b) => a.seconds - b.seconds)[0];
}

async function tryAll(session, engine, rank, model) {
  const tried = [];
  for (const mode of engine === 'relora' ? oursModes : pytorchModes) {
    const side = { engine, ...model, rank: rank === 0 ? 0 : 128, ...batchShape, ...mode };
    session.say(`  trying ${labelOf(side)}`);
    tried.push({ side, mode, ...(await tryOut(session, side)) });
  }
  return tried;
}

async function tryOut(session, side) {
  let child;
  try {
    child = await session.open(side);
    const answers = [];
    for (let step = 0; step < stepCount; step++) answers.push(await child.ask({ step: {} }));
    const seconds = Math.min(...answers.slice(1).map((answer) => answer.seconds));
    return { seconds, peakBytes: answers.at(-1).peakBytes, failure: null };
  } catch (error) {
    return { failure: error.message };
  } finally {
    await child?.close();
  }
}

export function report(tried) {
  const cells = tried
    .filter(({ failure }) => failure === null)
    .map(({ side, seconds, peakBytes }) => [
      kindOf(side),
      nameOf(side),
      modeOf(side),
      milliseconds(seconds),
      ((side.batch * side.time) / seconds).toFixed(0),
      megabytes(peakBytes),
    ]);
  const missing = notAvailable(tried.map(({ side, failure }) => ({ label: labelOf(side), failure })));
  return `8 sequences of 256 tokens, the better of two steps after one warm-up. Precisions of PyTorch: float32; bfloat16 weights, gradients
and moments; autocast. All with its fused attention and AdamW.

${table(['kind', 'side', 'mode', 'ms a step', 'tokens/s', 'peak resident MB'], cells)}${missing}`;
}
