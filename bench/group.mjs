import { productPrecision } from './machine.mjs';
import { fastestMode } from './modes.mjs';
import { planned } from './planned.mjs';
import { alternate } from './sides/alternate.mjs';
import { availableBytes } from './sides/processMemory.mjs';
import { batchShape, kindOf, labelOf, modeOf, nameOf } from './sides/sides.mjs';
import { megabytes, milliseconds, none, notAvailable, percent, table, times } from './table.mjs';

const mergeRepeats = 3;

/**
 * Measures whole steps of several sides alternately, each in its own process, and the merges of sides with adapters. A side without a
 * precision uses its engine's fastest. A side that is not available becomes a row with its `failure`.
 */
export async function measureGroup(session, sides, protocol) {
  const open = [];
  const failed = [];
  for (const wanted of sides) {
    const side = { ...batchShape, ...wanted, ...(await modeFor(session, wanted)) };
    try {
      if (side.precision === undefined) throw new Error(session.pytorch.reason ?? 'no mode of it works');
      checkMemory(side, session.results.machine.device);
      session.say(`  opening ${labelOf(side)}`);
      open.push({ side, child: await session.open(side) });
    } catch (error) {
      failed.push({ ...side, failure: error.message });
    }
  }
  try {
    const runs = await alternate(
      open.map(({ child }) => child),
      protocol,
    );
    const rows = [];
    for (const [index, { side, child }] of open.entries()) {
      const { failure, ...measured } = runs[index];
      if (failure !== undefined) failed.push({ ...side, failure });
      else rows.push(await rowOf(session, side, child, measured));
    }
    return [...rows, ...failed];
  } finally {
    await Promise.all(open.map(({ child }) => child.close()));
  }
}

/** Turns a side that does not fit into a line of the report, before the system kills something. */
function checkMemory(side, device) {
  // PyTorch in bfloat16 keeps weights, gradients and moments in half the bytes that our plan assumes.
  const share = side.engine === 'pytorch' && side.precision === 'bfloat16' ? 0.5 : 1;
  const needed = share * planned(side, device).peakBytes;
  const available = availableBytes();
  if (needed > available)
    throw new Error(`it needs about ${megabytes(needed)} MB, and ${megabytes(available)} MB are available`);
}

async function modeFor(session, { engine, rank, precision, compile }) {
  if (precision !== undefined) return { precision, compile };
  if (engine === 'pytorch' && session.pytorch.command === null) return {};
  return (await fastestMode(session, engine, rank)) ?? {};
}

async function rowOf(session, side, child, { secondsBest, secondsMedian, last }) {
  const tokens = side.batch * side.time;
  const peak = session.results.machine.peaks[productPrecision(side.precision)] ?? null;
  const plan = planned(side, session.results.machine.device);
  const gflops = plan.operations / secondsMedian / 1e9;
  const isOurs = side.engine === 'relora';
  const row = {
    ...side,
    secondsBest,
    secondsMedian,
    tokensPerSecond: tokens / secondsBest,
    gflops,
    share: isOurs && peak !== null ? gflops / peak : null,
    peakBytes: last.peakBytes,
    planned: isOurs ? plan : null,
    mergeSeconds: null,
    failure: null,
  };
  // After the steps' peak was read: a merge may briefly need more, which `mergePeakBytes` then shows.
  return isOurs && side.rank > 0 ? { ...row, ...(await mergesOf(child)) } : row;
}

async function mergesOf(child) {
  let best = Infinity;
  let mergePeakBytes = 0;
  for (let repeat = 0; repeat < mergeRepeats; repeat++) {
    const { seconds, peakBytes } = await child.ask({ merge: {} });
    best = Math.min(best, seconds);
    mergePeakBytes = peakBytes;
  }
  return { mergeSeconds: best, mergePeakBytes };
}

export function stepTable(rows) {
  const header = [
    'preset',
    'kind',
    'side',
    'mode',
    'ms a step, best',
    'median',
    'tokens/s',
    'GFLOP/s',
    'share of peak',
    'peak MB',
    'merge ms',
    'speed to own full-rank',
  ];
  const cells = rows
    .filter(({ failure }) => failure === null)
    .map((row) => [
      row.layerCount === undefined ? row.preset : `${row.preset}, ${row.layerCount} layers`,
      kindOf(row),
      nameOf(row),
      modeOf(row),
      milliseconds(row.secondsBest),
      milliseconds(row.secondsMedian),
      row.tokensPerSecond.toFixed(0),
      row.gflops.toFixed(0),
      percent(row.share),
      megabytes(row.peakBytes),
      row.mergeSeconds === null ? none : milliseconds(row.mergeSeconds),
      speedToFullRank(row, rows),
    ]);
  return table(header, cells) + notAvailable(rows.map((row) => ({ ...row, label: labelOf(row) })));
}

function speedToFullRank(row, rows) {
  const full = rows.find(
    ({ engine, preset, layerCount, rank, failure }) =>
      failure === null &&
      rank === 0 &&
      engine === row.engine &&
      preset === row.preset &&
      layerCount === row.layerCount,
  );
  return full === undefined || row.rank === 0 ? none : times(full.secondsBest / row.secondsBest);
}

/** How far estimates are from measurements, for the rows with an estimate. */
export function planTable(rows) {
  const header = ['preset', 'kind', 'mode', 'peak MB', 'planned', 'off by', 'ms a step', 'planned', 'off by'];
  return table(
    header,
    rows
      .filter(hasPlan)
      .map((row) => [
        row.preset,
        kindOf(row),
        modeOf(row),
        megabytes(row.peakBytes),
        megabytes(row.planned.peakBytes),
        percent(deviation(row).memory),
        milliseconds(row.secondsMedian),
        milliseconds(row.planned.seconds),
        percent(deviation(row).time),
      ]),
  );
}

export function hasPlan({ failure, planned }) {
  return failure === null && planned !== null;
}

/** Estimates relative to measurements, signed: positive if the estimate is higher. */
export function deviation({ planned, peakBytes, secondsMedian }) {
  return { memory: planned.peakBytes / peakBytes - 1, time: planned.seconds / secondsMedian - 1 };
}
