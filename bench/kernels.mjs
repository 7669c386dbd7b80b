import { productPrecision } from './machine.mjs';
import { fastestMode } from './modes.mjs';
import { planned } from './planned.mjs';
import { batchShape, kindOf, modeOf } from './sides/sides.mjs';
import { isProduct } from './sides/kernelCosts.mjs';
import { milliseconds, none, percent, short, table } from './table.mjs';

export const name = 'kernels';
export const title = 'A step by kernel, and the share of JavaScript';
export const isFull = false;

const warmUps = 3;
const stepCount = 7;
const cases = [
  { preset: 'llama-60m', rank: 128 },
  { preset: 'llama-60m', rank: 0 },
  { preset: 'llama-60m', rank: 64, precision: 'int8Base' },
  { preset: 'llama-9m', rank: 16 },
];

export async function run(session) {
  const profiles = [];
  for (const wanted of cases) {
    const mode = wanted.precision === undefined ? await fastestMode(session, 'relora', wanted.rank) : {};
    profiles.push(await profileOf(session, { engine: 'relora', ...batchShape, ...wanted, ...mode }));
  }
  return profiles;
}

async function profileOf(session, side) {
  let child;
  try {
    child = await session.open({ ...side, isProfiled: true });
    for (let step = 0; step < warmUps; step++) await child.ask({ step: {} });
    await child.ask({ profile: {} });
    let seconds = 0;
    for (let step = 0; step < stepCount; step++) seconds += (await child.ask({ step: {} })).seconds;
    const { kernels, bookkeepingSeconds } = await child.ask({ profile: {} });
    return {
      ...side,
      ...perStep(kernels, seconds - bookkeepingSeconds),
      ...ceiling(session, side),
      failure: null,
    };
  } catch (error) {
    return { ...side, failure: error.message };
  } finally {
    await child?.close();
  }
}

function perStep(kernels, seconds) {
  const rows = Object.entries(kernels).map(([kernel, sum]) => ({
    kernel,
    ...Object.fromEntries(Object.entries(sum).map(([key, value]) => [key, value / stepCount])),
  }));
  rows.sort((a, b) => b.seconds - a.seconds);
  const sum = (chosen) => chosen.reduce((total, row) => total + row.seconds, 0);
  return {
    stepSeconds: seconds / stepCount,
    kernels: rows,
    productSeconds: sum(rows.filter(({ kernel }) => isProduct(kernel))),
    javascriptSeconds: seconds / stepCount - sum(rows),
  };
}

/** Time of a step if all its operations ran at the measured peak. */
function ceiling(session, side) {
  const peak = session.results.machine.peaks[productPrecision(side.precision)];
  const { operations } = planned(side, session.results.machine.device);
  return { peak, plannedOperations: operations };
}

export function report(profiles) {
  const sections = profiles.map((profile) =>
    profile.failure === null
      ? profileText(profile)
      : `### ${headingOf(profile)}\n\nNot available: ${profile.failure}`,
  );
  return `Mean of ${stepCount} steps after ${warmUps} warm-ups; 8 sequences of 256 tokens. Operations are those of docs/relora.md. MB are all arrays
handed to a kernel, each once: the least that must move. What is in no kernel is JavaScript.

${sections.join('\n\n')}`;
}

export function plots(profiles) {
  return profiles
    .filter(({ failure }) => failure === null)
    .slice(0, 1)
    .map((profile) => {
      const { kernels, stepSeconds, javascriptSeconds } = profile;
      const parts = [...kernels, { kernel: 'JavaScript', seconds: javascriptSeconds }];
      return {
        title: `Where a step goes: ${headingOf(profile)}`,
        bars: parts.map(({ kernel, seconds }) => ({
          label: kernel,
          value: seconds,
          shown: percent(seconds / stepSeconds, 1),
          tone: isProduct(kernel) ? 0 : 5,
        })),
      };
    });
}

function headingOf(profile) {
  return `${profile.preset}, ${kindOf(profile)}, ${modeOf(profile)}`;
}

function profileText(profile) {
  const { stepSeconds, kernels, javascriptSeconds, productSeconds, plannedOperations, peak } = profile;
  const counted = kernels.reduce((sum, { operations }) => sum + operations, 0);
  const rows = kernels.map(({ kernel, calls, seconds, operations, bytes }) => [
    kernel,
    short(calls),
    milliseconds(seconds),
    percent(seconds / stepSeconds, 1),
    operations === 0 ? none : short(operations / 1e9),
    operations === 0 ? none : (operations / seconds / 1e9).toFixed(0),
    short(bytes / 1e6),
    short(bytes / seconds / 1e9),
  ]);
  rows.push([
    'JavaScript',
    '',
    milliseconds(javascriptSeconds),
    percent(javascriptSeconds / stepSeconds, 1),
    ...Array(4).fill(none),
  ]);
  const atPeak =
    peak === null
      ? ''
      : `, of which ${milliseconds(plannedOperations / peak / 1e9)} ms if all operations ran at the measured peak`;
  return `### ${headingOf(profile)}

${milliseconds(stepSeconds)} ms a step${atPeak}; ${percent(1 - productSeconds / stepSeconds, 1)} outside kernels that are products. Operations counted ${short(counted / 1e9)} GFLOP, planned ${short(plannedOperations / 1e9)}.

${table(['kernel', 'calls', 'ms', 'share', 'GFLOP', 'GFLOP/s', 'MB', 'GB/s'], rows)}`;
}
