// Matrix signs of Muon beside a layer's product, by size: `node bench/signs.mjs [--against FILE] [seconds]`. One thread; each round times one
// update, the product of 960 tokens with a layer of that size, and the update by the addon FILE, if one is given: processor time in turns,
// since other programs disturb wall time. The table has medians over rounds.
import { createRequire } from 'node:module';
import { cpus, loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { loadNativeAddon } from '@relora/engine';
import { signWork } from '@relora/engine/plan';
import { table } from './table.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { against: { type: 'string' } },
});
const secondsEach = Number(positionals[0] ?? 8);
const tokens = 960;
const options = { learningRate: 1e-6, momentum: 0.95, weightDecay: 0, gradientScale: 1 };
const shapes = [
  [64, 512],
  [128, 352],
  [192, 192],
  [192, 512],
  [512, 512],
  [512, 1376],
  [1376, 512],
];

const addon = loadNativeAddon();
const instructionSet = process.env.RELORA_INSTRUCTION_SET ?? addon.describe().instructionSets[0];
const { against = null } = values;
const [own, other] = [addon, against && createRequire(import.meta.url)(against)].map((one) =>
  one?.open({ instructionSet, threads: 1 }),
);

const filled = (length) => Float32Array.from({ length }, (_, i) => ((i * 7919) % 1009) / 1009 - 0.5);
const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
const seconds = (run) => {
  const before = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
};

const rows = [];
for (const precision of ['float32', 'bfloat16'])
  for (const [inFeatures, outFeatures] of shapes) {
    const weights = inFeatures * outFeatures;
    const matrices = {
      parameters: [filled(weights)],
      gradients: [filled(weights)],
      moments: { values: [new Float32Array(weights)], codes: null, scales: null },
    };
    const [x, w, y] = [filled(tokens * inFeatures), filled(weights), new Float32Array(tokens * outFeatures)];
    const layer = {
      batch: 1,
      m: tokens,
      n: outFeatures,
      k: inFeatures,
      transposeA: false,
      transposeB: false,
    };
    const update = (by) =>
      seconds(() =>
        by.muonInPlace({ rows: inFeatures, columns: outFeatures }, matrices, { ...options, precision }),
      );
    const { flops } = signWork(inFeatures, outFeatures);
    const rounds = { sign: [], product: [], share: [], ratio: [] };
    let peak = 0;
    for (const end = performance.now() + 1000 * secondsEach; performance.now() < end;) {
      const sign = flops / update(own);
      const product = (2 * tokens * weights) / seconds(() => own.matmul(y, x, w, layer, precision));
      if (other) rounds.ratio.push((update(other) * sign) / flops);
      rounds.sign.push(sign);
      rounds.product.push(product);
      rounds.share.push(sign / product);
      peak = Math.max(peak, own.measurePeak(precision, 3));
    }
    rows.push([
      `${inFeatures}×${outFeatures}, ${precision}`,
      peak.toFixed(0),
      (median(rounds.product) / 1e9).toFixed(1),
      (median(rounds.sign) / 1e9).toFixed(1),
      median(rounds.share).toFixed(2),
      ...(other ? [median(rounds.ratio).toFixed(3)] : []),
      rounds.share.length,
    ]);
  }
console.log(`${cpus()[0]?.model ?? ''}, ${instructionSet}, one thread, load ${loadavg()[0].toFixed(0)}, Node ${process.versions.node}.

${table(
  [
    'matrix',
    'best peak, GFLOP/s',
    'product',
    'sign',
    'sign over product',
    ...(other ? ["the other addon's time over this one's"] : []),
    'rounds',
  ],
  rows,
)}`);
