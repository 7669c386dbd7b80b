import { JobPhase, JobState } from '@relora/sdk';
import { bytes, duration, figure, quantity } from './format.js';
import { remainingSeconds, type JobProgress } from './jobProgress.js';
import { lossCurve } from './lossCurve.js';
import { fit, printable, wrap } from './screenText.js';

export interface FrameSize {
  width: number;
  height: number;
}

/** Colors by meaning; without color, each function returns the text unchanged. */
export interface Palette {
  title(text: string): string;
  bar(text: string): string;
  curve(text: string): string;
  evaluation(text: string): string;
  restart(text: string): string;
  dim(text: string): string;
  bad(text: string): string;
}

export function palette(isColored: boolean): Palette {
  const style = (code: string) => (text: string) => (isColored ? `\u001b[${code}m${text}\u001b[0m` : text);
  return {
    title: style('1'),
    bar: style('32'),
    curve: style('36'),
    evaluation: style('1;33'),
    restart: style('35'),
    dim: style('2'),
    bad: style('1;31'),
  };
}

/** Minimum sizes below the curve, on a screen of 24 lines; a taller one shows more, and a taller curve. */
const restartsShownMin = 4;
const sampleLinesMin = 2;
const warningLinesMax = 3;

/** The whole view as lines that fit the size. A pure function, so that it can be tested. */
export function renderFrame(progress: JobProgress, size: FrameSize, paint: Palette): string[] {
  const width = Math.min(size.width, 160);
  // Of the lines above 24, a quarter goes to more restarts, an eighth to the sample, and the rest to the curve.
  const spare = Math.max(0, size.height - 24);
  const head = [...headLines(progress, width, paint)];
  const foot = [
    ...figureLines(progress, width, paint),
    ...restartLines(progress, restartsShownMin + Math.floor(spare / 4), paint),
    ...sampleLines(progress, width, sampleLinesMin + Math.floor(spare / 8), paint),
    ...wrap(printable(progress.warning), width - 2, warningLinesMax).map((line) => paint.bad(` ${line}`)),
  ];
  const curveHeight = Math.max(4, size.height - head.length - foot.length - 1);
  const curve = lossCurve(progress.losses, {
    width,
    height: curveHeight,
    stepCount: Math.max(progress.stepCount, progress.step),
    evaluations: progress.evaluations,
    restarts: progress.restarts.map(({ step }) => step),
    paint: { curve: paint.curve, evaluation: paint.evaluation, restart: paint.restart, axis: paint.dim },
  });
  // A line that wraps would count as two, and the view could not find its first line again.
  return [...head, ...curve, ...foot].slice(0, Math.max(1, size.height - 1)).map((line) => fit(line, width));
}

function* headLines(progress: JobProgress, width: number, paint: Palette): Generator<string> {
  const state = stateName(progress.state);
  const phase = progress.state === JobState.RUNNING ? ` · ${phaseName(progress.phase)}` : '';
  yield `${paint.title(cut(` ${printable(progress.title)}`, width - state.length - phase.length - 3))} ${paint.dim('·')} ${
    progress.state === JobState.FAILED ? paint.bad(state) : state
  }${paint.dim(phase)}`;

  yield progressLine(progress, width, paint);
  const isGoing = progress.state === JobState.RUNNING || progress.state === JobState.SUCCEEDED;
  if (isGoing) return;
  for (const line of wrap(printable(progress.reason), width - 2, warningLinesMax))
    yield paint.dim(` ${line}`);
}

/** A bar, if the number of steps is known. */
function progressLine(progress: JobProgress, width: number, paint: Palette): string {
  const { step, stepCount } = progress;
  if (stepCount === 0) return ` step ${step}`;
  const share = Math.min(1, step / stepCount);
  const left = share < 1 && progress.state === JobState.RUNNING ? remainingSeconds(progress) : null;
  const time = left === null ? '' : `  ${duration(left)} left`;
  const text = ` ${Math.floor(share * 100)} %  step ${step} of ${stepCount}${time}`;
  const barWidth = Math.max(8, width - text.length - 2);
  const filled = Math.round(share * barWidth);
  return ` ${paint.bar('━'.repeat(filled))}${paint.dim('─'.repeat(barWidth - filled))}${text}`;
}

/** As many figures per line as fit. */
function* figureLines(progress: JobProgress, width: number, paint: Palette): Generator<string> {
  const loss = progress.losses.at(-1);
  // Nothing is known before the first step.
  const known = (text: string) => (loss === undefined ? '–' : text);
  const evaluation = progress.evaluations.at(-1);
  const heldOut = evaluation
    ? `${evaluation.loss.toFixed(3)} (${evaluation.bitsPerByte.toFixed(3)} bits/byte)`
    : '–';
  const figures: [name: string, value: string, style?: (text: string) => string][] = [
    ['loss', loss ? loss.loss.toFixed(3) : '–', paint.curve],
    ['◆ held-out', heldOut, paint.evaluation],
    ['rate', known(progress.learningRate.toExponential(2))],
    ['gradient', known(figure(progress.gradientNorm))],
    ['', `${known(quantity(progress.tokensPerSecond))} tokens/s`],
    ['', `${quantity(progress.trainedTokens)} tokens`],
    ['memory', known(bytes(progress.residentBytes))],
    ['checkpoint', progress.checkpointStep === null ? '–' : String(progress.checkpointStep)],
  ];
  let line = '';
  let used = 0;
  for (const [name, value, style = (text: string) => text] of figures) {
    const length = name.length + value.length + (name === '' ? 2 : 3);
    if (used > 0 && used + length > width + 1) {
      yield line;
      line = '';
      used = 0;
    }
    line += `${used === 0 ? ' ' : '  '}${name === '' ? '' : `${style(name)} `}${value}`;
    used += length;
  }
  yield line;
}

function* restartLines({ restarts }: JobProgress, shownMax: number, paint: Palette): Generator<string> {
  if (restarts.length === 0) return;
  yield paint.restart(' ┊ merge   step  norm of change  effective rank  logit change   zeroed');
  for (const restart of restarts.slice(-shownMax)) {
    const cells = [
      String(restart.restart).padStart(8),
      String(restart.step).padStart(7),
      figure(restart.deltaNorm).padStart(16),
      restart.effectiveRank.toFixed(1).padStart(16),
      restart.logitChange.toExponential(1).padStart(14),
      `${(100 * restart.momentsZeroed).toFixed(1)} %`.padStart(9),
    ];
    yield cells.join('').trimEnd();
  }
}

function* sampleLines(
  { sample }: JobProgress,
  width: number,
  linesMax: number,
  paint: Palette,
): Generator<string> {
  if (sample === null) return;
  const lines = wrap(printable(`${sample.prompt}${sample.text}`), width - 4, linesMax);
  for (const [index, line] of lines.entries()) yield paint.dim(`  ${index === 0 ? '“' : ' '}${line}`);
}

function stateName(state: JobState): string {
  return state.replace('JOB_STATE_', '').toLowerCase();
}

function phaseName(phase: JobPhase): string {
  switch (phase) {
    case JobPhase.WARM_START:
      return 'warm start (full-rank)';
    case JobPhase.ADAPTER:
      return 'low-rank adapters';
    case JobPhase.FULL_RANK:
      return 'full-rank';
    default:
      return 'starting';
  }
}

function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
}
