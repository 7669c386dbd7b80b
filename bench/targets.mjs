import { deviation, hasPlan } from './group.mjs';
import { atDepth } from './llama1b.mjs';
import { weightedShare } from './products.mjs';
import { none, percent, table, times } from './table.mjs';

/**
 * The engine's targets, each evaluated on the results of a run. `measure` returns { value, detail } in the target's unit, or null if the
 * run did not measure it. `atLeast` or `atMost` is the target; both may be functions of the machine.
 */
const targets = [
  {
    subject: 'speed 60m',
    what: "60M ReLoRA r=128, not quantized, to PyTorch's ReLoRA",
    unit: 'ratio',
    // In float32 PyTorch's compiled step reaches 65 % of an Intel processor's peak: even at the full peak we could be only 1.54x as fast.
    atLeast: ({ instructionSet }) => (/bf16|amx/i.test(instructionSet) ? 2 : 1.15),
    measure: ({ steps }) => speed(row(steps, pytorch60m(128)), fastest(steps, ours60m(128))),
  },
  {
    subject: 'speed 60m int8',
    what: '60M ReLoRA r=64, int8 base, to PyTorch full-rank',
    unit: 'ratio',
    atLeast: 2,
    measure: ({ steps }) =>
      speed(row(steps, pytorch60m(0)), row(steps, { ...ours60m(64), precision: 'int8Base' })),
  },
  {
    subject: 'speed 60m, head int8',
    what: "60M ReLoRA r=128, not quantized but for the head, to PyTorch's ReLoRA",
    unit: 'ratio',
    atLeast: 1.25,
    measure: ({ steps }) =>
      speed(row(steps, pytorch60m(128)), fastest(steps, { ...ours60m(128), headPrecision: 'int8' })),
  },
  {
    subject: 'speed 60m, head int8',
    what: '60M ReLoRA r=64, int8 base and head, to PyTorch full-rank',
    unit: 'ratio',
    atLeast: 1.8,
    measure: ({ steps }) =>
      speed(
        row(steps, pytorch60m(0)),
        row(steps, { ...ours60m(64), precision: 'int8Base', headPrecision: 'int8' }),
      ),
  },
  {
    subject: 'speed 350m',
    what: "350M ReLoRA r=128, int8 base, to PyTorch's ReLoRA",
    unit: 'ratio',
    atLeast: 2.5,
    measure: ({ llama350m }) =>
      speed(
        row(llama350m, { engine: 'pytorch', rank: 128 }),
        row(llama350m, { engine: 'relora', rank: 128, precision: 'int8Base' }),
      ),
  },
  {
    subject: 'llama-1b',
    what: 'llama-1b r=128: three steps and a merge, peak resident',
    unit: 'GiB',
    atMost: 8,
    measure({ llama1b }) {
      const row = leanest(llama1b);
      return row === undefined ? null : { value: row.mergePeakBytes / 2 ** 30, detail: row.precision };
    },
  },
  {
    subject: 'llama-1b',
    what: "the same to PyTorch's ReLoRA",
    unit: 'ratio',
    atLeast: 2.5,
    measure: ({ llama1b }) => speed(row(llama1b?.whole, { engine: 'pytorch' }), leanest(llama1b)),
  },
  {
    subject: 'own full rank',
    what: 'ReLoRA step to own full-rank step, slowest of all ranks and presets',
    unit: 'ratio',
    atLeast: 1,
    measure({ steps, llama350m }) {
      const rows = found([...(steps ?? []), ...(llama350m ?? [])], { engine: 'relora' });
      const ratios = rows
        .filter(({ rank }) => rank > 0)
        .map((adapted) => ({
          ...speed(row(rows, { preset: adapted.preset, rank: 0 }), adapted),
          detail: `${adapted.preset} r=${adapted.rank}`,
        }))
        .filter(({ value }) => value !== undefined);
      return ratios.sort((a, b) => a.value - b.value)[0] ?? null;
    },
  },
  {
    subject: 'own full rank',
    what: '350M, r=d/8, to own full-rank',
    unit: 'ratio',
    atLeast: 1.25,
    measure: ({ llama350m }) =>
      speed(
        row(llama350m, { engine: 'relora', rank: 0 }),
        unquantized(llama350m, { engine: 'relora', rank: 128 })[0],
      ),
  },
  {
    subject: 'own full rank',
    what: '1B, r=128, to own full-rank',
    unit: 'ratio',
    atLeast: 1.3,
    measure: ({ llama1b }) => deepRatio(llama1b, undefined),
  },
  {
    subject: 'own full rank',
    what: '1B, int8 base, to own full-rank',
    unit: 'ratio',
    atLeast: 2,
    measure: ({ llama1b }) => deepRatio(llama1b, 'int8Base'),
  },
  {
    subject: 'memory 60m',
    what: "peak resident, 60M, 2048 tokens, to PyTorch's ReLoRA",
    unit: 'ratio',
    atMost: 0.35,
    measure({ steps }) {
      const [theirs] = found(steps, pytorch60m(128));
      const [ours] = found(steps, ours60m(128)).sort((a, b) => a.peakBytes - b.peakBytes);
      return theirs && ours ? { value: ours.peakBytes / theirs.peakBytes, detail: ours.precision } : null;
    },
  },
  ...[
    ['float32', 'float32 products', 0.85],
    ['bfloat16', 'bfloat16 products', ({ instructionSet }) => bfloat16Share(instructionSet)],
    ['int8', 'int8 products', 0.7],
  ].map(([precision, what, atLeast]) => ({
    subject: 'products',
    what: `${what} of a layer to the measured peak, by operations`,
    unit: 'share',
    atLeast,
    measure({ products }) {
      const rows = (products ?? []).filter((row) => row.precision === precision && isOfLayer(row));
      if (rows.length === 0) return null;
      const [worst] = [...rows].sort((a, b) => a.share - b.share);
      const detail = `worst ${percent(worst.share)}: ${worst.kind}, ${worst.product}, ${worst.shape}`;
      return { value: weightedShare(rows), detail };
    },
  })),
  {
    subject: 'outside products',
    what: 'step outside products, 60M r=128',
    unit: 'share',
    atMost: ({ instructionSet }) => (/amx/.test(instructionSet) ? 0.35 : 0.12),
    measure: ({ kernels }) =>
      profiled(kernels, 'llama-60m', ({ stepSeconds, productSeconds }) => 1 - productSeconds / stepSeconds),
  },
  {
    subject: 'head',
    what: 'head and cross-entropy to PyTorch',
    unit: 'ratio',
    atLeast: 2,
    measure: ({ head }) => speed(fastest(head, { engine: 'pytorch' }), fastest(head, { engine: 'relora' })),
  },
  {
    subject: 'head',
    what: 'head and cross-entropy, scratch',
    unit: 'MB',
    // Half as many exponentials would take 34 MB, and 1.13 times as long in float32: bench/results/2026-12-01-intel-xeon-amx-kernels.md.
    atMost: 80,
    measure({ head }) {
      const ours = fastest(head, { engine: 'relora' });
      return ours ? { value: ours.last.scratchBytes / 1e6, detail: ours.precision } : null;
    },
  },
  {
    subject: 'merge',
    what: 'merge, requantize, repack, in steps, 60M, slowest',
    unit: 'steps',
    atMost: 2,
    measure({ steps }) {
      const merges = found(steps, { engine: 'relora', preset: 'llama-60m' })
        .filter(({ mergeSeconds }) => mergeSeconds !== null)
        .map((row) => ({
          value: row.mergeSeconds / row.secondsBest,
          detail: `r=${row.rank}, ${row.precision}`,
        }));
      return merges.sort((a, b) => b.value - a.value)[0] ?? null;
    },
  },
  ...[
    ['llama-60m', 0.01],
    ['llama-9m', 0.1],
  ].map(([preset, atMost]) => ({
    subject: 'JavaScript',
    what: `JavaScript's share of a step, ${preset}`,
    unit: 'share',
    atMost,
    measure: ({ kernels }) =>
      profiled(kernels, preset, ({ stepSeconds, javascriptSeconds }) => javascriptSeconds / stepSeconds),
  })),
  ...[
    ['memory', 0.1],
    ['time', 0.2],
  ].map(([quantity, atMost]) => ({
    subject: 'estimates',
    what: `estimate of ${quantity}, furthest from measurement`,
    unit: 'share',
    atMost,
    measure({ steps, estimates, llama350m, llama1b }) {
      const measured = [steps, estimates, llama350m, llama1b?.whole];
      const rows = measured.flatMap((found) => found ?? []).filter(hasPlan);
      const off = rows.map((row) => ({
        value: Math.abs(deviation(row)[quantity]),
        detail: `${row.preset} r=${row.rank}`,
      }));
      return off.sort((a, b) => b.value - a.value)[0] ?? null;
    },
  })),
  {
    subject: 'threads',
    what: 'one thread to two',
    unit: 'ratio',
    atLeast: 1.85,
    measure({ threads }) {
      const [one, two] = [1, 2].map((count) => threads?.find((row) => row.threads === count));
      return one && two ? speed(one, two) : null;
    },
  },
  {
    subject: 'time to loss',
    what: "time to PyTorch full-rank's final held-out loss",
    unit: 'ratio',
    atMost: 1,
    measure({ timeToLoss }) {
      const ours = (timeToLoss?.runs ?? []).filter(
        ({ engine, failure, ratio }) => engine === 'relora' && failure === null && ratio !== null,
      );
      const [best] = ours.sort((a, b) => a.ratio - b.ratio);
      return best ? { value: best.ratio, detail: best.label } : null;
    },
  },
];

const pytorch60m = (rank) => ({ engine: 'pytorch', preset: 'llama-60m', rank });
const ours60m = (rank) => ({ engine: 'relora', preset: 'llama-60m', rank });

/** Measured rows with these values, best first. */
function found(rows, values) {
  const wanted = { headPrecision: undefined, ...values };
  const matches = (row) => Object.entries(wanted).every(([key, value]) => row[key] === value);
  return (rows ?? [])
    .filter((row) => row.failure === null && matches(row))
    .sort((a, b) => a.secondsBest - b.secondsBest);
}

function row(rows, wanted) {
  return found(rows, wanted)[0];
}

/** The run of the whole llama-1b with the least memory, from which both figures of llama-1b are taken. */
function leanest(llama1b) {
  return found(llama1b?.whole, { engine: 'relora' }).sort((a, b) => a.mergePeakBytes - b.mergePeakBytes)[0];
}

function unquantized(rows, wanted) {
  return found(rows, wanted).filter(({ precision }) => !/Base$/.test(precision));
}

function fastest(rows, wanted) {
  return unquantized(rows, wanted)[0];
}

/** How many times as fast as the reference. */
function speed(reference, measured) {
  if (reference === undefined || measured === undefined) return null;
  return { value: reference.secondsBest / measured.secondsBest, detail: measured.precision ?? '' };
}

function deepRatio(llama1b, precision) {
  const layerCount = 24;
  const [full, adapted] = [{ rank: 0 }, { rank: 128, precision }].map((wanted) =>
    llama1b ? atDepth(llama1b.shallow, layerCount, wanted) : null,
  );
  return full === null || adapted === null ? null : { value: full / adapted, detail: 'from 2 and 4 layers' };
}

function profiled(kernels, preset, valueOf) {
  const profile = kernels?.find(
    (entry) => entry.failure === null && entry.preset === preset && entry.rank > 0,
  );
  return profile === undefined ? null : { value: valueOf(profile), detail: profile.precision };
}

/** Products of layers and head. The adapter of an int8 base is not in int8: there only the base counts. */
function isOfLayer({ precision, kind }) {
  return precision === 'int8' ? kind === 'base' : kind !== 'attention';
}

function bfloat16Share(instructionSet) {
  if (/amx/.test(instructionSet)) return 0.5;
  return /bf16/.test(instructionSet) ? 0.85 : 0.8;
}

/** Rows { subject, what, target, measured, detail, met, margin }; the last four are null if the run did not measure it. */
export function judged(results) {
  return targets.map(({ subject, what, unit, measure, ...bounds }) => {
    const [sign, bound] = bounds.atLeast === undefined ? ['<=', bounds.atMost] : ['>=', bounds.atLeast];
    const goal = typeof bound === 'function' ? bound(results.machine) : bound;
    const target = `${sign} ${shown(goal, unit)}`;
    const result = measure(results);
    if (result === null)
      return { subject, what, target, measured: null, detail: null, met: null, margin: null };
    const { value, detail } = result;
    // By what factor the target is exceeded: 1 is exactly met, for both directions of targets.
    const margin = sign === '>=' ? value / goal : goal / value;
    return { subject, what, target, measured: shown(value, unit), detail, met: margin >= 1, margin };
  });
}

function shown(value, unit) {
  if (unit === 'ratio') return times(value);
  if (unit === 'share') return percent(value, value < 0.02 ? 2 : value < 0.2 ? 1 : 0);
  return `${value.toFixed(value < 100 ? 1 : 0)} ${unit}`;
}

export function targetTable(results) {
  const rows = judged(results).map(({ subject, what, target, measured, detail, met, margin }) => [
    subject,
    what,
    target,
    measured === null ? 'not measured' : `${measured}${detail === '' ? '' : ` (${detail})`}`,
    met === null ? none : met ? 'met' : 'missed',
    percent(margin),
  ]);
  return table(['subject', 'what', 'target', 'measured', '', 'of the target'], rows);
}
