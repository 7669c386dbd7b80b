// Muon, LoRA-Muon and choices of the next A, against AdamW: the same tokens of real text, one thread per run.
//
//     node bench/muon.mjs [--preset demo] [--steps 1000] [--seeds 3] [--report FILE] [method …]
//
// Finished runs are stored in .relora/convergence/ and not repeated, so that an interrupted run continues. A method's rate is tuned with
// the first seed on a third of the steps: 0.001 and 0.003, then doubled as long as the highest rate is best.
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { defaultRunSpec, presets } from '../engine/dist/plan/index.js';
import { Runs } from './convergence/runs.mjs';
import { table } from './table.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    preset: { type: 'string', default: 'demo' },
    steps: { type: 'string', default: '1000' },
    seeds: { type: 'string', default: '3' },
    report: { type: 'string' },
  },
});
const [stepCount, seedCount] = [Number(values.steps), Number(values.seeds)];
const rank = 24;
const firstRates = [1e-3, 3e-3];
const highestRate = 0.1; // all of them diverge far below this

const methods = {
  'full-rank AdamW': { fullRank: 'adamw' },
  'full-rank Muon': { fullRank: 'muon' },
  'full-rank APOLLO-Mini': { fullRank: 'apolloMini' },
  'ReLoRA AdamW': { adapter: {} },
  'ReLoRA AdamW, warm start by Muon': { warmStart: 'muon', adapter: {} },
  'ReLoRA LoRA-Muon, new A random': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon' },
  },
  'ReLoRA LoRA-Muon, old span': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon', initialisation: 'oldSpan' },
  },
  'ReLoRA LoRA-Muon, half span': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon', initialisation: 'halfSpan' },
  },
  'LoRA AdamW, never merged': { warmStart: 'muon', adapter: {}, kind: 'lora' },
  'LoRA LoRA-Muon, never merged': {
    warmStart: 'muon',
    adapter: { adapterOptimizer: 'loraMuon' },
    kind: 'lora',
  },
};

function specOf({ fullRank, warmStart = 'adamw', adapter, kind = 'relora' }, rate, seed, steps) {
  const warmSteps = fullRank === undefined ? Math.round(steps / 5) : 0;
  const mainSteps = steps - warmSteps;
  const cycleStepCount = kind === 'lora' ? mainSteps : Math.round(mainSteps / 4);
  return defaultRunSpec({
    kind: fullRank === undefined ? kind : 'fullRank',
    model: { ...presets[values.preset], vocabSize: 257 },
    dataset: 'datasets/text',
    warmStart: { stepCount: warmSteps, learningRate: 3e-3, optimizer: warmStart },
    adapter: fullRank === undefined ? { rank, alpha: rank, cycleStepCount, ...adapter } : null,
    stepCount: mainSteps,
    learningRate: { peak: rate },
    optimizer: { fullRankOptimizer: fullRank ?? 'adamw' },
    batch: { sequenceLength: 256, sequenceCount: 4 },
    precision: 'float32',
    seed,
    evaluation: { everyStepCount: 0, tokenCount: 16_384, finalTokenCount: 65_536 },
    checkpoint: { everyStepCount: 0 },
    device: 'native',
  });
}

const runs = await Runs.open({ parallelCount: 1 });

const lossOf = (result) => (result.failure === null ? result.curve.at(-1).loss : Infinity);
const rows = [];
try {
  for (const name of positionals.length > 0 ? positionals : Object.keys(methods)) {
    const method = methods[name];
    const rate = await tuned(name, method);
    const results = [];
    for (let seed = 1; seed <= seedCount; seed++)
      results.push(await runs.train(specOf(method, rate, seed, stepCount), `${name} seed ${seed}`));
    rows.push({ name, rate, results });
    write();
  }
} finally {
  await runs.close();
}

/** The main phase's rate with the lowest final loss on a third of the steps. */
async function tuned(name, method) {
  let best = { rate: NaN, loss: Infinity };
  const rates = [...firstRates];
  for (let rate; (rate = rates.shift()) !== undefined;) {
    const spec = specOf(method, rate, 1, Math.round(stepCount / 3));
    const loss = lossOf(await runs.train(spec, `${name} ${rate}`));
    if (loss < best.loss) best = { rate, loss };
    if (rates.length === 0 && best.rate === rate && rate < highestRate)
      rates.push(Number((2 * rate).toPrecision(2)));
  }
  return best.rate;
}

function write() {
  const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  const cells = rows.map(({ name, rate, results }) => {
    const losses = results.map(lossOf);
    const jumps = results.flatMap(({ jumps = [] }) => jumps);
    return [
      name,
      rate,
      mean(losses).toFixed(4),
      losses.length > 1 ? (Math.max(...losses) - Math.min(...losses)).toFixed(4) : '–',
      jumps.length > 0 ? mean(jumps).toFixed(4) : '–',
      mean(results.map(({ effectiveRank }) => effectiveRank ?? 0)).toFixed(1),
      (results[0].stateBytes / 1e6).toFixed(2),
      mean(results.map(({ seconds }) => seconds / stepCount)).toFixed(3),
    ];
  });
  const text = `# Optimizers of ReLoRA on the preset ${values.preset}

${runs.cpuModel.split(' ').slice(0, 2).join(' ')}, commit ${commit}. ${stepCount} steps of 1024 bytes of the demo's text, a fifth of them the warm start, rank ${rank}, four cycles; float32, one thread,
${seedCount} seed${seedCount > 1 ? 's' : ''}, other programs beside. Rates tuned on a third of the steps: ${firstRates.join(' and ')}, twice as high while that is lower. Held-out loss in nats a byte; the jump is the mean
training loss of ten steps after a restart less that of ten before; MB of optimizer state at the end. \`node bench/muon.mjs\`

${table(['method', 'rate', 'loss', 'spread', 'jump', 'effective rank', 'state MB', 's a step'], cells)}
`;
  if (values.report !== undefined) writeFileSync(values.report, text);
  console.log(text);
}
