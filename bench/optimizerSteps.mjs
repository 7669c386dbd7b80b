// Steps of Muon and LoRA-Muon compared with AdamW's: `node bench/optimizerSteps.mjs [PRESET] [TOKENS] [RANK]`. Each round computes the
// gradients once and then every optimizer's update with them, so that other load on the machine affects all alike; one thread, processor
// seconds, since wall time includes other processes. The peak rate is measured in each round, by wall time: the best one counts.
import { availableParallelism, cpus, loadavg } from 'node:os';
import { loadNativeAddon, openDevice } from '@relora/engine';
import { defaultRunSpec, linearShapes, presets, signWork } from '@relora/engine/plan';
import { GradientBuffer } from '../engine/dist/model/gradientBuffer.js';
import { Llama } from '../engine/dist/model/llama.js';
import { Optimizer } from '../engine/dist/training/optimizer.js';
import { plainMethods } from '../engine/dist/training/optimizerMethods.js';
import { table } from './table.mjs';

const [preset = 'llama-60m', tokens = '2048', rank = '64'] = process.argv.slice(2);
const [time, vocabSize, rounds] = [256, 32_000, 7];
const batch = Number(tokens) / time;
const precision = 'bfloat16';
const settings = {
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  momentum: 0.95,
  weightDecay: 0,
  momentType: 'float32',
};
const learningRate = 1e-6;

const seconds = (run) => {
  const before = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
};
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

/** Records the times of an update's sign computations. */
function watched(device, notes) {
  return new Proxy(device, {
    get(target, key) {
      const value = Reflect.get(target, key, target);
      if (typeof value !== 'function') return value;
      if (key !== 'muon' && key !== 'loraMuon') return value.bind(target);
      return (...args) => notes.push(seconds(() => value.apply(target, args)));
    },
  });
}

const device = await openDevice({ device: 'native', precision, threads: 1 });
// The peak of one thread, like the device.
const addon = loadNativeAddon();
const one = addon.open({ instructionSet: addon.describe().instructionSets[0], threads: 1 });
const rows = [];
for (const [kind, names] of [
  ['full rank', ['adamw', 'muon']],
  [`rank ${rank}`, ['adamw', 'loraMuon']],
]) {
  const model = Llama.create(device, { ...presets[preset], vocabSize }, 1);
  if (kind !== 'full rank')
    model.attachAdapters(
      defaultRunSpec({ model: model.config, adapter: { rank: Number(rank), alpha: Number(rank) } }).adapter,
      1,
      0,
    );
  const inputs = Int32Array.from({ length: batch * time }, (_, i) => (i * 7919) % vocabSize);
  const targets = Int32Array.from({ length: batch * time }, (_, i) => (i * 104729 + 1) % vocabSize);
  const gradients = new GradientBuffer(device, model.trainable());
  const result = device.newResult(0);
  const notes = Object.fromEntries(names.map((name) => [name, []]));
  const optimizers = names.map((name) => [
    name,
    new Optimizer(watched(device, notes[name]), settings, {
      ...plainMethods,
      base: () => (name === 'muon' ? 'muon' : 'adamw'),
      adapters: name === 'loraMuon' ? 'loraMuon' : 'adamw',
      parameter: (of) => model.parameters.get(of),
    }),
  ]);
  const [gradient, updates, signs] = [[], { adamw: [], [names[1]]: [] }, []];
  let peak = 0;
  for (let round = 0; round <= rounds; round++) {
    device.clearResult(result);
    const ofGradients = seconds(() =>
      model.differentiate({ inputs, targets, batch, time, documents: null }, gradients, result),
    );
    device.sumSquares(result, gradients.parts);
    for (const [name, optimizer] of optimizers) {
      notes[name].length = 0;
      const phase = kind === 'full rank' ? 'fullRank' : 'adapter';
      const taken = seconds(() => optimizer.apply(gradients, learningRate, { result, normMax: 1 }, phase));
      if (round > 0) updates[name].push(taken); // the first round allocates the moments
    }
    peak = Math.max(peak, one.measurePeak(precision, 30));
    if (round > 0) {
      gradient.push(ofGradients);
      signs.push(notes[names[1]].reduce((sum, value) => sum + value, 0));
    }
  }
  const base = median(gradient);
  const adamw = median(updates.adamw);
  const own = median(updates[names[1]]);
  const operations =
    kind === 'full rank'
      ? model.config.numHiddenLayers *
        Object.values(linearShapes(model.config)).reduce(
          (sum, { inFeatures, outFeatures }) => sum + signWork(inFeatures, outFeatures).flops,
          0,
        )
      : null;
  rows.push([
    `${names[1] === 'muon' ? 'Muon' : 'LoRA-Muon'}, ${kind}`,
    base.toFixed(3),
    adamw.toFixed(3),
    own.toFixed(3),
    ((base + own) / (base + adamw)).toFixed(3),
    operations === null ? '–' : `${((100 * operations) / median(signs) / 1e9 / peak).toFixed(0)} %`,
  ]);
  device.releaseResult(result);
  gradients.dispose();
  model.dispose();
}
device.close();
console.log(`# Steps by Muon and LoRA-Muon beside those by AdamW

${cpus()[0]?.model ?? ''}, one of ${availableParallelism()} processors, load ${loadavg()[0].toFixed(0)}, Node ${process.versions.node}. \`node bench/optimizerSteps.mjs ${preset} ${tokens} ${rank}\`: ${preset}, ${tokens} tokens
in sequences of ${time}, a vocabulary of ${vocabSize}, ${precision}; processor seconds, medians of ${rounds} rounds of one run.

${table(['optimizer', 'gradients, s', 'update by AdamW, s', 'its own update, s', 'step over one by AdamW', 'of the measured peak'], rows)}

The last column is the sign of every matrix over the peak of a loop of the instruction of products, in the same run.
`);
