// FP8_BASE against BFLOAT16 on real text, without a card: the same tokens over two restarts, several seeds of each. Products with the
// frozen base are computed as on the device `cuda`, with e4m3 codes and scales (bench/sides/e4m3Device.mjs).
//
//     node bench/fp8Band.mjs [--preset llama-9m] [--steps 400] [--seeds 3] [--parallel 1] [--report FILE]
//
// Finished runs are stored in .relora/convergence/ and not repeated, so that an interrupted run continues.
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { defaultRunSpec, presets } from '../engine/dist/plan/index.js';
import { Runs } from './convergence/runs.mjs';
import { table } from './table.mjs';

const { values } = parseArgs({
  options: {
    preset: { type: 'string', default: 'llama-9m' },
    steps: { type: 'string', default: '400' },
    seeds: { type: 'string', default: '3' },
    parallel: { type: 'string', default: '1' },
    report: { type: 'string' },
  },
});
const [stepCount, seedCount] = [Number(values.steps), Number(values.seeds)];
const precisions = ['bfloat16', 'fp8Base'];
const rank = 32;
const batch = { sequenceLength: 256, sequenceCount: 8 };
/** A fifth of the steps full-rank, then three cycles. */
const warmStepCount = Math.round(stepCount / 5);
const mainStepCount = stepCount - warmStepCount;

const specOf = (precision, seed) =>
  defaultRunSpec({
    model: { ...presets[values.preset], vocabSize: 257 },
    dataset: 'datasets/text',
    warmStart: { stepCount: warmStepCount, learningRate: 2e-3 },
    // With a base in e4m3 an adapter has a separate path, so both sides use one and differ only in the base.
    adapter: { rank, alpha: rank, cycleStepCount: Math.ceil(mainStepCount / 3), graph: 'separate' },
    stepCount: mainStepCount,
    learningRate: { peak: 4e-3 },
    batch,
    precision,
    seed,
    evaluation: { everyStepCount: 0, tokenCount: 16_384, finalTokenCount: 131_072 },
    checkpoint: { everyStepCount: 0 },
    device: 'native',
  });

const runs = await Runs.open({ parallelCount: Number(values.parallel) });
/** Finished runs by precision; both precisions of a seed come before the next seed. */
const done = Object.fromEntries(precisions.map((precision) => [precision, []]));
try {
  for (let seed = 1; seed <= seedCount; seed++) {
    const trained = precisions.map((precision) =>
      runs.train(specOf(precision, seed), `${values.preset} ${precision} seed ${seed}`),
    );
    for (const [i, result] of (await Promise.all(trained)).entries()) done[precisions[i]].push(result);
    write();
  }
} finally {
  await runs.close();
}

function write() {
  const losses = (precision) =>
    done[precision].map(({ curve, failure }) => (failure ? NaN : curve.at(-1).loss));
  const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const spread = (numbers) => Math.max(...numbers) - Math.min(...numbers);
  const [wide, narrow] = precisions.map(losses);
  const apart = mean(narrow) - mean(wide);
  const cells = precisions.map((precision) => [
    precision,
    ...losses(precision).map((loss) => loss.toFixed(4)),
    mean(losses(precision)).toFixed(4),
    spread(losses(precision)).toFixed(4),
    mean(done[precision].flatMap(({ jumps = [] }) => jumps)).toFixed(4),
    mean(done[precision].map(({ seconds }) => seconds / stepCount)).toFixed(3),
  ]);
  const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  const seeds = wide.map((_, i) => `seed ${i + 1}`);
  const byPair = narrow.map((loss, i) => (loss - wide[i]).toFixed(4)).join(', ');
  const text = `# A base in FP8 beside one in bfloat16: ${values.preset}

${runs.cpuModel.split(' ').slice(0, 2).join(' ')}, commit ${commit}. ${stepCount} steps of ${batch.sequenceLength * batch.sequenceCount} bytes of the demo's text: ${warmStepCount} in full rank, then three cycles of rank ${rank}
with two restarts. Held-out loss in nats a byte at the end; the jump is the mean training loss of ten steps after a restart less that
of ten before. The base in FP8 is multiplied in codes of e4m3 with the card's scales, on a processor; all else is the device
\`native\`. \`node bench/fp8Band.mjs --preset ${values.preset} --steps ${stepCount} --seeds ${seedCount}\`

${table(['precision', ...seeds, 'mean', 'spread of seeds', 'jump', 's a step'], cells)}

FP8 less bfloat16: ${apart.toFixed(4)} in the mean, ${byPair} seed by seed. Twice the spread of bfloat16's seeds is ${(2 * spread(wide)).toFixed(4)}: ${
    wide.length < 2
      ? 'one seed has none'
      : Math.abs(apart) <= spread(wide)
        ? 'within the spread'
        : Math.abs(apart) <= 2 * spread(wide)
          ? 'within twice the spread'
          : 'outside'
  }.
`;
  if (values.report !== undefined) writeFileSync(values.report, text);
  console.log(text);
}
