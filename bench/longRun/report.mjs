import { linePanel } from '../plots/lines.mjs';
import { figure } from '../plots/svg.mjs';
import { table } from '../table.mjs';

/** Results of both runs, as a page and a plot of their curves. */
export function reportOf({ undisturbed, killed, stepCount, killSeconds, everySeconds, minutes, machine }) {
  const rows = [undisturbed, killed].map(({ name, losses, kills, weights, state }) => [
    name,
    state,
    losses.byStep.filter((loss) => loss !== undefined).length,
    kills.trainer,
    kills.server,
    losses.attempts,
    losses.repeated,
    losses.differing.length,
    Object.values(losses.duties)
      .map((steps) => steps.length)
      .join(', '),
    `\`${losses.sha256().slice(0, 16)}\``,
    `\`${weights?.slice(0, 16)}\``,
  ]);
  const curve = compareCurve(killed);
  const isEqual =
    undisturbed.losses.sha256() === killed.losses.sha256() &&
    undisturbed.weights !== undefined &&
    undisturbed.weights === killed.weights &&
    killed.losses.differing.length + undisturbed.losses.spans + killed.losses.spans === 0 &&
    curve.worst < 1e-6;
  const head = `# A run of ${Math.round(minutes)} minutes with a kill every ${killSeconds} seconds

${machine}. ${stepCount} steps on a mixture of three data sets; evaluation, checkpoint and sample every ${everySeconds} seconds and never by steps.
`;
  const text = `${head}
${table(
  [
    'run',
    'state',
    'steps',
    'trainer killed',
    'server too',
    'attempts',
    'steps taken again',
    'of them with another loss',
    'evaluations, checkpoints, samples',
    'SHA-256 of all losses',
    'of the weights',
  ],
  rows,
)}

Losses and weights are ${isEqual ? 'equal, bit for bit' : '**not equal**'}. Of the curve that the server answers from folded steps (${curve.points} points, each of ${curve.bucket} steps
or of a span that is longer) the mean that is farthest from the mean of the losses that a watcher got differs by ${curve.worst.toExponential(1)} of it.
`;
  const svg = figure(`Training loss of ${stepCount} steps`, [
    linePanel({
      title: 'Before folding: losses as watchers got them, means of as many steps as below',
      lines: [undisturbed, killed].map(({ name, losses }) => ({
        label: name,
        points: means(losses.byStep, curve.bucket),
      })),
    }),
    linePanel({
      title: 'After folding: what the server answers of the killed run, with minimum and maximum',
      lines: [{ label: 'killed, from spans', points: curve.means, band: curve.band }],
    }),
  ]);
  return { text, svg, isEqual };
}

function compareCurve({ folded, losses }) {
  const points = folded.series[0]?.points ?? [];
  const bucket = folded.bucketStepCount;
  let worst = points.length === 0 ? Infinity : 0;
  let end = 0; // points must be contiguous
  for (const { mean, valueCount } of points) {
    const values = losses.byStep.slice(end, end + valueCount);
    end += valueCount;
    worst = Math.max(worst, Math.abs(mean / meanOf(values) - 1));
  }
  if (end !== losses.byStep.length) worst = Infinity;
  return {
    ...{ points: points.length, bucket, worst },
    means: points.map(({ step, mean }) => [step, mean]),
    band: points.map(({ step, min, max }) => [step, min, max]),
  };
}

function means(values, bucket) {
  const points = [];
  for (let start = 0; start < values.length; start += bucket)
    points.push([start, meanOf(values.slice(start, start + bucket))]);
  return points;
}

function meanOf(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
