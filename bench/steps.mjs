// Speed of whole training steps of the presets: tokens a second, GFLOP/s and share of the measured peak.
// node bench/steps.mjs [preset …]
import { pathToFileURL } from 'node:url';
import { estimateRun, presets, targetModules } from '../engine/dist/plan/index.js';
import { Llama, selectBackend } from '../engine/dist/index.js';
import { measuredPeak } from './products.mjs';
import { AdamW } from '../engine/dist/training/adamW.js';
import { accumulateGradients, clipScale, globalNorm } from '../engine/dist/training/gradients.js';

const warmUps = 2;
const repeats = 5;

/** What is measured by default: small enough for minutes on two cores. */
const cases = [
  { preset: 'demo', vocabSize: 4096, sequences: 8, time: 256, rank: 32 },
  { preset: 'llama-9m', vocabSize: 32000, sequences: 8, time: 256, rank: 16 },
  { preset: 'llama-20m', vocabSize: 32000, sequences: 8, time: 256, rank: 32 },
  { preset: 'llama-60m', vocabSize: 32000, sequences: 8, time: 256, rank: 64 },
  { preset: 'llama-60m', vocabSize: 32000, sequences: 8, time: 256, rank: 128 },
];

/** Rows of { preset, kind, rank, tokens, secondsMedian, secondsBest, tokensPerSecond, gflops, share, residentBytes }. */
export async function benchSteps({ only = [], backend, onRow = () => {} } = {}) {
  backend ??= await selectBackend({ device: 'native', precision: 'auto' });
  const peak = measuredPeak(backend.native, backend.precision);
  const rows = [];
  for (const shape of cases.filter(({ preset }) => only.length === 0 || only.includes(preset))) {
    for (const kind of ['fullRank', 'relora']) {
      // Full-rank speed does not depend on the rank: measured once for a preset.
      if (kind === 'fullRank' && rows.some((row) => row.preset === shape.preset)) continue;
      const row = { ...(await measure(shape, kind)), peak };
      row.share = row.gflops / peak;
      rows.push(row);
      onRow(row);
    }
  }
  return rows;
}

async function measure({ preset, vocabSize, sequences, time, rank }, kind) {
  const config = { ...presets[preset], vocabSize };
  const adapter = { rank, alpha: rank, dropout: 0, targetModules: [...targetModules], trainableScale: false };
  const model = Llama.create(config, 0);
  if (kind === 'relora') model.attachAdapters(adapter, 0, 0);
  const optimizer = new AdamW({ beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 });
  const tokens = Int32Array.from(
    { length: sequences * time + 1 },
    (_, i) => (i * 7919 + ((i * i) % 613)) % vocabSize,
  );
  const batch = { inputs: tokens.subarray(0, -1), targets: tokens.subarray(1) };
  const shape = { step: 0, sequenceLength: time, microBatchSequenceCount: sequences, seed: 0 };

  const seconds = [];
  let residentBytes = 0;
  for (let step = 0; step < warmUps + repeats; step++) {
    const start = performance.now();
    const { gradients } = await accumulateGradients(model, batch, shape, new AbortController().signal);
    optimizer.apply(model.trainable(), gradients, 1e-4, clipScale(globalNorm(gradients), 1));
    for (const gradient of gradients.values()) gradient.dispose();
    if (step >= warmUps) seconds.push((performance.now() - start) / 1e3);
    residentBytes = Math.max(residentBytes, process.memoryUsage.rss());
  }
  model.dispose();
  optimizer.dispose();

  seconds.sort((a, b) => a - b);
  const secondsMedian = seconds[repeats >> 1];
  const tokenCount = sequences * time;
  const { flopsPerToken } = estimateRun(specOf(config, kind, adapter, sequences, time), {
    flopsPerSecond: 1,
    packedBytes: 4,
  });
  return {
    preset,
    kind,
    rank: kind === 'relora' ? rank : null,
    tokens: tokenCount,
    secondsMedian,
    secondsBest: seconds[0],
    tokensPerSecond: tokenCount / secondsMedian,
    gflops: (flopsPerToken * tokenCount) / secondsMedian / 1e9,
    residentBytes,
  };
}

/** As much of a specification as the count of its operations needs. */
function specOf(model, kind, adapter, sequenceCount, sequenceLength) {
  return {
    kind,
    model,
    adapter: kind === 'relora' ? { ...adapter, cycleStepCount: 1, restartWarmupStepCount: 0 } : null,
    warmStart: { stepCount: 0, learningRate: 1, warmupStepCount: 0 },
    stepCount: 1,
    batch: { sequenceCount, sequenceLength, microBatchSequenceCount: sequenceCount },
    checkpoint: { everyStepCount: 1, keepCount: 2 },
    export: { weightType: 'float32' },
  };
}

export const stepHeader = [
  'preset',
  'kind',
  'rank',
  'ms a step, median',
  'best',
  'tokens/s',
  'GFLOP/s',
  'share of peak',
  'resident MB',
];

export function stepCells(row) {
  return [
    row.preset,
    row.kind,
    row.rank ?? '–',
    (1e3 * row.secondsMedian).toFixed(0),
    (1e3 * row.secondsBest).toFixed(0),
    row.tokensPerSecond.toFixed(0),
    row.gflops.toFixed(0),
    `${(100 * row.share).toFixed(0)} %`,
    (row.residentBytes / 1e6).toFixed(0),
  ].map(String);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.log(stepHeader.join('  '));
  await benchSteps({ only: process.argv.slice(2), onRow: (row) => console.log(stepCells(row).join('  ')) });
}
