// Muon, LoRA-Muon and choices of the next A, against AdamW: the same tokens of real text, one thread per run.
//
//     node bench/muon.mjs [--preset demo] [--steps 1000] [--seeds 3] [--rank 24] [--cycle STEPS]
//                         [--restart-warmup STEPS] [--precision float32] [--equal-time] [--parallel 2] [--report FILE] [method …]
//
// Two runs at a time. Finished runs are stored in .relora/convergence/ and not repeated, so that an interrupted run continues. A method's
// rate is tuned with the first seed on whole runs, since on a third of the steps Muon's best rate is four times as high. A warm start has the
// rate of the full-rank run by its optimizer. With --equal-time each method is trained once more, for as many steps as it makes in the
// processor time of full-rank AdamW. Curves are drawn beside the report.
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultRunSpec, presets } from '../engine/dist/plan/index.js';
import { finalLoss } from './convergence/compare.mjs';
import { Runs } from './convergence/runs.mjs';
import { tuned } from './convergence/tune.mjs';
import { linePanel } from './plots/lines.mjs';
import { figure } from './plots/svg.mjs';
import { table } from './table.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    preset: { type: 'string', default: 'demo' },
    steps: { type: 'string', default: '1000' },
    seeds: { type: 'string', default: '3' },
    rank: { type: 'string', default: '24' },
    cycle: { type: 'string' },
    'restart-warmup': { type: 'string' },
    precision: { type: 'string', default: 'float32' },
    'equal-time': { type: 'boolean', default: false },
    parallel: { type: 'string', default: '2' },
    report: { type: 'string' },
  },
});
const [stepCount, seedCount] = [Number(values.steps), Number(values.seeds)];
const rank = Number(values.rank);

const fullRankBy = { adamw: 'full-rank AdamW', muon: 'full-rank Muon' };
/** `rates`: where the search of the best one begins, near what was best before; it extends the grid itself. */
const methods = {
  'full-rank AdamW': { fullRank: 'adamw', rates: [7.5e-4, 1.5e-3] },
  'full-rank Muon': { fullRank: 'muon', rates: [3e-3, 6e-3] },
  'full-rank APOLLO-Mini': { fullRank: 'apolloMini', rates: [3e-3, 6e-3] },
  'ReLoRA AdamW': { adapter: {}, rates: [3e-3, 6e-3] },
  'ReLoRA AdamW, warm start by Muon': { warmStart: 'muon', adapter: {}, rates: [3e-3, 6e-3] },
  'ReLoRA LoRA-Muon, new A random': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon' },
    rates: [6e-3, 12e-3],
  },
  'ReLoRA LoRA-Muon, old span': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon', initialisation: 'oldSpan' },
    rates: [6e-3, 12e-3],
  },
  'ReLoRA LoRA-Muon, half span': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon', initialisation: 'halfSpan' },
    rates: [6e-3, 12e-3],
  },
  'LoRA AdamW, never merged': { warmStart: 'muon', adapter: {}, kind: 'lora', rates: [3e-3, 6e-3] },
  'LoRA LoRA-Muon, never merged': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon' },
    kind: 'lora',
    rates: [6e-3, 12e-3],
  },
};

async function specOf({ fullRank, warmStart = 'adamw', adapter, kind = 'relora' }, rate, seed, steps) {
  const warmSteps = fullRank === undefined ? Math.round(steps / 5) : 0;
  const warmRate = fullRank === undefined ? (await tunedRateOf(fullRankBy[warmStart])).value : undefined;
  const mainSteps = steps - warmSteps;
  const cycle = values.cycle === undefined ? Math.round(mainSteps / 4) : Number(values.cycle);
  const cycleStepCount = kind === 'lora' ? mainSteps : cycle;
  const restart =
    values['restart-warmup'] === undefined || kind === 'lora'
      ? {}
      : { restartWarmupStepCount: Number(values['restart-warmup']) };
  return defaultRunSpec({
    kind: fullRank === undefined ? kind : 'fullRank',
    model: { ...presets[values.preset], vocabSize: 257 },
    dataset: 'datasets/text',
    warmStart: { stepCount: warmSteps, learningRate: warmRate, optimizer: warmStart },
    adapter: fullRank === undefined ? { rank, alpha: rank, cycleStepCount, ...restart, ...adapter } : null,
    stepCount: mainSteps,
    learningRate: { peak: rate },
    optimizer: { fullRankOptimizer: fullRank ?? 'adamw' },
    batch: { sequenceLength: 256, sequenceCount: 4 },
    precision: values.precision,
    seed,
    evaluation: { everyStepCount: 0, tokenCount: 16_384, finalTokenCount: 65_536 },
    checkpoint: { everyStepCount: 0 },
    device: 'native',
  });
}

const unknown = positionals.filter((name) => methods[name] === undefined);
if (unknown.length > 0)
  throw new Error(`method: one of ${Object.keys(methods).join('; ')}; got ${unknown.join('; ')}`);
const names = positionals.length > 0 ? positionals : Object.keys(methods);
const runs = await Runs.open({ parallelCount: Number(values.parallel), isMeasured: true });

const seeds = Array.from({ length: seedCount }, (_, index) => index + 1);
const rows = new Map();
const rates = new Map();
try {
  await Promise.all(
    names.map(async (name) => {
      rows.set(name, await measured(name));
      write();
    }),
  );
} finally {
  await runs.close();
}

/** Runs of a method with all seeds at its tuned rate, and at equal time if wanted. */
async function measured(name) {
  const { value: rate, tried } = await tunedRateOf(name);
  const trainAll = (steps) => Promise.all(seeds.map(async (seed) => train(name, { rate, seed, steps })));
  const results = await trainAll(stepCount);
  if (!values['equal-time']) return { name, rate, tried, results };
  const reference = await tunedRateOf('full-rank AdamW');
  const own = results[0].processorSeconds;
  const { processorSeconds } = await train('full-rank AdamW', {
    rate: reference.value,
    seed: 1,
    steps: stepCount,
  });
  // A multiple of 20, so that the four cycles after a fifth of the steps are equally long.
  const steps = 20 * Math.round((stepCount * processorSeconds) / own / 20);
  return { name, rate, tried, results, atEqualTime: { steps, results: await trainAll(steps) } };
}

async function train(name, { rate, seed, steps }) {
  const spec = await specOf(methods[name], rate, seed, steps);
  return await runs.train(spec, `${name}, rate ${rate}, seed ${seed}, ${steps} steps`);
}

/** The main phase's rate of a method with the lowest loss of the first seed, searched once. */
function tunedRateOf(name) {
  if (!rates.has(name)) {
    const lossAt = async (rate) => finalLoss(await train(name, { rate, seed: 1, steps: stepCount }));
    rates.set(name, tuned(methods[name].rates, lossAt));
  }
  return rates.get(name);
}

function write() {
  const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const lossCells = (results) => {
    const losses = results.map(finalLoss);
    const spread = losses.length > 1 ? (Math.max(...losses) - Math.min(...losses)).toFixed(4) : '–';
    return [mean(losses).toFixed(4), spread];
  };
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  const finished = names.flatMap((name) => rows.get(name) ?? []);
  const cells = finished.map(({ name, rate, results, atEqualTime }) => {
    const whole = results.filter(({ failure }) => failure === null);
    const jumps = whole.flatMap((result) => result.jumps);
    const meanOf = (value, digits) => (whole.length > 0 ? mean(whole.map(value)).toFixed(digits) : '–');
    return [
      name,
      rate,
      ...lossCells(results),
      jumps.length > 0 ? mean(jumps).toFixed(4) : '–',
      meanOf(({ effectiveRank }) => effectiveRank, 1),
      meanOf(({ stateBytes }) => stateBytes / 1e6, 2),
      meanOf(({ peakBytes }) => peakBytes / 1e6, 0),
      meanOf(({ processorSeconds }) => processorSeconds / stepCount, 3),
      ...(atEqualTime === undefined ? [] : [atEqualTime.steps, ...lossCells(atEqualTime.results)]),
    ];
  });
  const columns = ['method', 'rate', 'loss', 'spread', 'jump', 'effective rank', 'state MB', 'peak MB'];
  const atEqualTime = values['equal-time'] ? ['steps at equal time', 'loss', 'spread'] : [];
  const tried = finished.map(({ name, tried }) => [
    name,
    tried.map(({ value, loss }) => `${value}: ${loss.toFixed(4)}`).join(', '),
  ]);
  const text = `# Optimizers of ReLoRA on the preset ${values.preset}

${runs.cpuModel.split(' ').slice(0, 2).join(' ')} (${runs.instructionSet}), commit ${commit}. ${stepCount} steps of 1024 bytes of the demo's text, a fifth of them the warm start, rank ${rank}, ${values.cycle === undefined ? 'four cycles' : `cycles of ${values.cycle} steps`}${values['restart-warmup'] === undefined ? '' : `, the rate rising for ${values['restart-warmup']} steps after a restart`}; ${values.precision}, one
thread, ${seedCount} seed${seedCount > 1 ? 's' : ''}, ${values.parallel} runs at a time. Rates tuned with the first seed on whole runs; a warm start has the rate of the full-rank run by its
optimizer. Held-out loss in nats a byte, and its range over the seeds; the jump is the mean training loss of ten steps after a restart less
that of ten before; MB of optimizer state at the end and of the process at its peak; processor seconds a step, which other programs lengthen
less than wall time.${values['equal-time'] ? ' At equal time: as many steps as take the processor time of full-rank AdamW, at the same rate.' : ''} \`node bench/muon.mjs\`

${table([...columns, 'processor s a step', ...atEqualTime], cells)}

Losses of the first seed at the rates that were tried:

${table(['method', 'rate: loss'], tried)}
`;
  if (values.report !== undefined) {
    const picture = values.report.replace(/(\.md)?$/, '.svg');
    writeFileSync(
      picture,
      figure(`Training loss on the preset ${values.preset}, ${commit}`, panels(finished)),
    );
    writeFileSync(values.report, `${text}\n![training loss](${basename(picture)})\n`);
  }
  console.log(text);
}

/** Mean curves over seeds, by steps and by processor time, without the steep beginning. */
function panels(finished) {
  const axes = { 'nats a byte by step': 'stepCount', 'nats a byte by processor seconds': 'processorSeconds' };
  const curves = finished.flatMap(({ name, results }) => {
    const whole = results.filter(({ failure }) => failure === null);
    return whole.length > 0 ? [{ label: name, bins: whole.map(({ bins }) => bins) }] : [];
  });
  return Object.entries(axes).map(([title, axis]) => {
    const lines = curves.map(({ label, bins }) => {
      const mean = (index, of) => bins.reduce((sum, one) => sum + one[index][of], 0) / bins.length;
      const points = bins[0].map((_, index) => [mean(index, axis), mean(index, 'loss')]);
      return { label, points: points.slice(Math.floor(points.length / 10)) };
    });
    return linePanel({ title, lines });
  });
}
