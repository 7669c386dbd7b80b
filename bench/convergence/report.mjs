import { percent, table } from '../table.mjs';
import { figuresOf, mean, orderOf, ratioWanted, spread } from './figures.mjs';

/** Of each pair the first should end no higher: the paper's finding, and the same without a warm start. */
const expectedOrders = [
  ['fullRank', 'reloraWarm'],
  ['reloraWarm', 'loraWarm'],
  ['loraWarm', 'lora'],
  ['reloraWarm', 'lora'],
  ['fullRank', 'relora'],
  ['relora', 'lora'],
  ['reloraQuarter', 'loraQuarter'],
];

/** Markdown of a comparison: table, search for rates, and conclusions from the numbers. */
export function report(plan, seeds, compared, machine) {
  const rows = compared.map((entry) => figuresOf(entry, compared[0]));
  return `${settingsText(plan, seeds, rows, machine)}

${table(
  [
    'mode',
    'settings',
    'trained weights',
    'tokens',
    'held-out loss',
    'perplexity',
    'to full-rank',
    'effective rank',
    'seconds',
  ],
  rows.map(cellsOf),
)}

Losses are means over the seeds ± their standard deviation. "To full-rank" is the ratio of perplexities, paired by seed. Trained weights
are those of the main phase. The effective rank is that of the change of the linear layers since the adapters began (full-rank: since
the beginning), mean over layers and seeds, of at most ${widthOf(rows[0])}. Seconds are of training and merging on one core, beside as many other runs as
there are cores.

## What the numbers say

${conclusions(rows, seeds)
  .map((line) => `- ${line}`)
  .join('\n')}

## What was searched

Each mode began with three values, a factor of two apart, on seed ${seeds[0]} at full length; while the best was at the edge, the search went
on. Full-rank searched its learning rate, the others the scale of their adapters, alpha / rank. Cells are held-out losses of that
seed; the best is used for all seeds.

${table(['mode', 'rate or scale: loss', 'best'], rows.map(searchCells))}
`;
}

function settingsText(plan, seeds, rows, { cpuModel, instructionSet, commit, trainTokenCount }) {
  const { numHiddenLayers, hiddenSize, intermediateSize, vocabSize } = rows[0].spec.model;
  const { sequenceLength, sequenceCount } = plan.batch;
  const stepTokenCount = sequenceLength * sequenceCount;
  const passes = (plan.stepCount * stepTokenCount) / trainTokenCount;
  return `A Llama of ${numHiddenLayers} layers, hidden ${hiddenSize}, MLP ${intermediateSize}, vocabulary ${vocabSize}, on the State of the Union addresses: ${trainTokenCount} tokens to
train on, of which ${plan.stepCount} steps of ${stepTokenCount} take ${passes.toFixed(2)} passes. Each evaluation is on the same ${plan.heldOutTokenCount} held-out tokens. Seeds
${seeds.join(', ')}: one seed means the same initial weights, data order and evaluation for all modes. AdamW (0.9, 0.99), clip 1,
${plan.precision}, warm-up ${plan.warmupStepCount}, cosine to a tenth of the peak; all modes and warm starts have full-rank's best rate, warm starts
constant; adapters on all linear layers. ${cpuModel}, ${instructionSet}, commit ${commit}.`;
}

function cellsOf(row) {
  return [
    row.mode.label,
    settingsOf(row),
    row.trainableCount,
    row.tokenCount,
    `${row.loss.toFixed(4)} ± ${row.lossSpread.toFixed(4)}`,
    Math.exp(row.loss).toFixed(2),
    `${row.ratio.toFixed(4)} ± ${row.ratioSpread.toFixed(4)}`,
    row.effectiveRank.toFixed(1),
    row.seconds.toFixed(0),
  ];
}

function settingsOf({ mode, spec }) {
  const { adapter, warmStart, learningRate, kind } = spec;
  const parts =
    adapter === null
      ? [`rate ${learningRate.peak}`]
      : [`rank ${adapter.rank}`, `scale ${adapter.alpha / adapter.rank}`];
  if (warmStart.stepCount > 0) parts.push(`warm start ${warmStart.stepCount}`);
  if (kind === 'relora') parts.push(`cycle ${adapter.cycleStepCount}`);
  if (mode.note !== undefined) parts.push(mode.note);
  return parts.join(', ');
}

function searchCells({ mode, tried, value, isInside }) {
  const losses = tried.map(
    ({ value, loss }) => `${value}: ${loss === Infinity ? 'diverged' : loss.toFixed(4)}`,
  );
  return [mode.label, losses.join(', '), `${value}${isInside ? '' : ' (at the edge)'}`];
}

/** Sentences derived from the figures; nothing in them is decided beforehand. */
export function conclusions(rows, seeds) {
  const find = (name) => rows.find(({ mode }) => mode.name === name);
  const orders = expectedOrders
    .map((pair) => pair.map(find))
    .filter((pair) => !pair.includes(undefined))
    .map(([lower, higher]) => orderText(lower, higher, seeds));
  const textError = Math.max(...rows.map((row) => row.textError));
  return [
    ...orders,
    ...nearnessTexts(rows),
    `Which text was held out accounts for at most ${textError.toFixed(4)} nats of a difference to full-rank (one standard error, from its pieces).`,
  ];
}

function orderText(lower, higher, seeds) {
  const { difference, error, verdict } = orderOf(lower, higher);
  const [one, other] = [lower.mode.label, higher.mode.label];
  const size = `${Math.abs(difference).toFixed(4)} ± ${error.toFixed(4)} nats`;
  switch (verdict) {
    case 'asExpected':
      return `${one} ends below ${other}, as expected: by ${size} (standard error over ${seeds.length} seeds).`;
    case 'reversed':
      return `**${one} ends above ${other}, against the expectation**: by ${size} (standard error over ${seeds.length} seeds).`;
    case 'undecided':
      return `${one} and ${other} cannot be distinguished: ${one} is ${difference >= 0 ? 'lower' : 'higher'} by ${size} (standard error over ${seeds.length} seeds).`;
  }
}

/** The modes with merges and restarts that are near enough to full rank, or else the nearest one. */
function nearnessTexts(rows) {
  const restarting = rows.filter(({ mode }) => mode.kind === 'relora');
  if (restarting.length === 0) return [];
  const over = ({ mode, ratio }) => `${mode.label} (${percent(ratio - 1, 2)})`;
  const near = restarting.filter(({ ratio }) => ratio <= ratioWanted);
  const wanted = percent(ratioWanted - 1);
  if (near.length > 0)
    return [
      `Within ${wanted} of full-rank's held-out perplexity, or below it, at equal tokens: ${near.map(over).join(', ')}.`,
    ];
  const nearest = restarting.reduce((best, row) => (row.ratio < best.ratio ? row : best));
  return [
    `**No mode with restarts is within ${wanted} of full-rank's perplexity**; the nearest is ${over(nearest)}.`,
  ];
}

function widthOf({ spec }) {
  return spec.model.hiddenSize;
}

/** The whole curves, and separately their last part, where they differ. */
export function plots(compared) {
  const lines = compared.map(({ mode, runs }) =>
    curveOf(
      mode,
      runs.filter(({ failure }) => failure === null),
    ),
  );
  const last = Math.max(...lines.flatMap(({ points }) => points.map(([x]) => x)));
  const from =
    (first) =>
    ({ label, points, band }) => ({
      label,
      points: points.filter(([x]) => x >= first),
      band: band.filter(([x]) => x >= first),
    });
  return [
    {
      title: 'Held-out loss, nats, by tokens trained on: mean and spread over seeds',
      lines: lines.map(from(1)),
    },
    { title: 'The same over the last half', lines: lines.map(from(last / 2)) },
  ];
}

function curveOf({ label }, runs) {
  const points = (runs[0]?.curve ?? []).map(({ tokenCount }, index) => {
    const losses = runs.map(({ curve }) => curve[index].loss);
    return { tokenCount, loss: mean(losses), deviation: spread(losses) };
  });
  return {
    label,
    points: points.map(({ tokenCount, loss }) => [tokenCount, loss]),
    band: points.map(({ tokenCount, loss, deviation }) => [tokenCount, loss - deviation, loss + deviation]),
  };
}
