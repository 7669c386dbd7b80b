import { JobPhase, JobState, type JobEvent } from '@relora/sdk';
import { expect, test } from 'vitest';
import { advance, newProgress, type JobProgress } from '../../cli/dist/jobProgress.js';
import { palette, renderFrame } from '../../cli/dist/renderFrame.js';

type Body = { [Kind in JobEvent['kind']]?: object };

function feed(progress: JobProgress, ...bodies: Body[]): JobProgress {
  for (const body of bodies) {
    const kind = Object.keys(body)[0]!;
    advance(progress, {
      sequence: 1,
      time: new Date(0),
      final: false,
      attempt: 1,
      kind,
      ...body,
    } as JobEvent);
  }
  return progress;
}

const lossAt = (step: number) => 2 + 6 * Math.exp(-step / 30);
const stepAt = (step: number, loss = lossAt(step)): Body => ({
  step: {
    step,
    loss,
    phase: step < 20 ? JobPhase.WARM_START : JobPhase.ADAPTER,
    learningRate: 1e-3,
    gradientNorm: 0.5,
    tokenCount: 512,
    trainedTokens: 512 * (step + 1),
    stepSeconds: 0.25,
    residentBytes: 118e6,
  },
});
const restartAt = (step: number, restart: number): Body => ({
  restart: {
    step,
    restart,
    deltaNorm: 1.5,
    effectiveRank: 6.1,
    logitChangeMax: 2.4e-7,
    momentsZeroedRatio: 1,
  },
});
const evaluationAt = (step: number): Body => ({
  evaluation: { step, loss: lossAt(step), bitsPerByte: lossAt(step) / Math.LN2 },
});
const running: Body = { state: { to: JobState.RUNNING, reason: 'Training' } };

/** A run that has done `steps` of 100 steps. */
function runOf(steps: number, title = 'jobs/job-1'): JobProgress {
  const progress = feed(newProgress(title, 100), running, evaluationAt(0));
  for (let step = 0; step < steps; step++) {
    if (step > 20 && step % 20 === 0) feed(progress, restartAt(step, step / 20 - 1));
    feed(progress, stepAt(step));
    if ((step + 1) % 20 === 0) feed(progress, evaluationAt(step + 1), { checkpoint: { step: step + 1 } });
  }
  return progress;
}

const sizes = [
  { width: 80, height: 24 },
  { width: 120, height: 40 },
  { width: 40, height: 12 },
];
const frame = (progress: JobProgress, size = sizes[0]!, isColored = false) =>
  renderFrame(progress, size, palette(isColored));

test.each(sizes)('draws a run in $width × $height', (size) => {
  expect(`\n${frame(runOf(90), size).join('\n')}\n`).toMatchSnapshot();
});

test('the merges of a fork continue the count of its origin', () => {
  const fork = feed(newProgress('jobs/job-2', 100), running, stepAt(59), restartAt(60, 3), stepAt(60));
  const lines = frame(fork);
  const head = lines.findIndex((line) => line.includes('┊ merge'));
  expect(lines[head + 1]).toMatch(/^ +3 +60 /);
});

test.each([
  ['nothing yet', newProgress('jobs/job-1', 0)],
  [
    'a job in the queue',
    feed(newProgress('jobs/job-1', 100), { state: { to: JobState.QUEUED, reason: 'Waits for a free slot' } }),
  ],
  [
    'losses that are not finite',
    feed(
      runOf(50),
      ...[50, 51, 52, 53, 54, 55].map((step) => stepAt(step, NaN)),
      ...[56, 57, 58].map((step) => stepAt(step)),
    ),
  ],
  ['a finished run', feed(runOf(100), { state: { to: JobState.SUCCEEDED, reason: '' } })],
  [
    'a failed run',
    feed(runOf(30), {
      state: { to: JobState.FAILED, failure: { reason: 'LOSS_NOT_FINITE', message: 'step 30' } },
    }),
  ],
])('draws %s', (_, progress) => {
  expect(`\n${frame(progress).join('\n')}\n`).toMatchSnapshot();
});

test('a tall terminal is used to its last line but one, and shows more restarts', () => {
  const progress = runOf(90);
  for (let step = 90; step < 99; step++) feed(progress, restartAt(step, step), stepAt(step));
  for (const height of [24, 40, 60]) expect(frame(progress, { width: 100, height })).toHaveLength(height - 1);
  const shown = (height: number) =>
    frame(progress, { width: 100, height }).filter((line) => /%$/.test(line)).length;
  expect(shown(40)).toBeGreaterThan(shown(24));
});

test('a long warning is broken between words, and what is left out has a sign', () => {
  const progress = feed(runOf(60), {
    warning: {
      reason: 'DATA_REPEATED',
      message: 'the run reads its training part more than once, '.repeat(9),
    },
  });
  const lines = frame(progress, { width: 60, height: 40 }).slice(-3);
  expect(lines[0]).toMatch(/^ DATA_REPEATED: the run reads/);
  for (const line of lines.slice(0, 2)) expect(line).not.toContain('…');
  expect(lines[2]).toMatch(/…$/);
  const short = feed(runOf(60), { warning: { reason: 'DISK_LOW', message: 'little room' } });
  expect(frame(short).at(-1)).toBe(' DISK_LOW: little room');
});

test('every line fits, in every size and with every text', () => {
  const evil = runOf(
    60,
    'title \u001b[2J\u0007 with 漢字 and 🙂 that is long enough for two lines of a terminal of the usual width',
  );
  feed(evil, { sample: { step: 60, prompt: '\u001b]0;x\u0007', text: '漢字🙂\n'.repeat(80) } });
  feed(evil, { warning: { reason: 'DISK_LOW', message: 'a\r\nb'.repeat(60) } });
  for (let width = 1; width <= 130; width += 3) {
    for (const height of [1, 5, 12, 24, 50]) {
      const lines = renderFrame(evil, { width, height }, palette(false));
      expect(lines.length).toBeLessThanOrEqual(Math.max(1, height - 1));
      for (const line of lines) {
        expect(line).not.toMatch(/[\u0000-\u001f]/);
        const wide = line.match(/[\u4e00-\u9fff]|\p{Emoji_Presentation}/gu)?.length ?? 0;
        expect([...line].length + wide).toBeLessThanOrEqual(width);
      }
    }
  }
});

test('colors change nothing but colors, and each is ended in its line', () => {
  for (const size of sizes) {
    const colored = frame(runOf(90), size, true);
    const colors = /\u001b\[[\d;]*m/g;
    expect(colored.map((line) => line.replace(colors, '').trimEnd())).toEqual(
      frame(runOf(90), size).map((line) => line.trimEnd()),
    );
    for (const line of colored) expect(line.match(colors)?.at(-1) ?? '\u001b[0m').toBe('\u001b[0m');
  }
});

test('restarts stand above their marks on the axis, up to the last column', () => {
  const progress = runOf(100);
  for (const step of [95, 97, 99]) feed(progress, restartAt(step, step));
  const lines = frame(progress, { width: 60, height: 24 });
  const axis = lines.findIndex((line) => line.includes('└'));
  const marks = [...lines[axis]!].flatMap((character, column) => (character === '┴' ? [column] : []));
  expect(marks).toHaveLength(6);
  for (const column of marks) expect(lines[3]![column]).toBe('┊');
  expect(marks.at(-1)).toBe(lines[axis]!.length - 1);
  expect(lines[axis + 1]).toMatch(/^ {8}0 +100$/);
  expect(lines[axis + 1]).toHaveLength(lines[axis]!.length);
});

test('steps that are reported together are joined to a curve, as single ones are', () => {
  const progress = feed(newProgress('jobs/job-1', 100), running);
  for (let step = 9; step < 100; step += 10) {
    const { step: body } = stepAt(step) as { step: object };
    const span = { firstStep: step - 9, stepCount: 10, tokenCount: 5120, seconds: 2.5 };
    feed(progress, { step: { ...body, span } });
  }
  const lines = frame(progress, { width: 80, height: 40 });
  const axis = lines.findIndex((line) => line.includes('└'));
  const drawn = new Set<number>();
  for (const line of lines.slice(0, axis))
    [...line].forEach((character, column) => {
      if (/[\u2801-\u28ff]/.test(character)) drawn.add(column);
    });
  const [first, last] = [Math.min(...drawn), Math.max(...drawn)];
  expect(last - first).toBeGreaterThan(55);
  expect(drawn.size).toBe(last - first + 1);
});

test('steps that are taken again after a crash replace what was drawn after them', () => {
  const progress = runOf(75);
  expect(progress.restarts.map(({ step }) => step)).toEqual([40, 60]);
  feed(progress, stepAt(45));
  expect(progress.step).toBe(46);
  expect(progress.losses.map(({ step }) => step)).toEqual(Array.from({ length: 46 }, (_, step) => step));
  expect(progress.restarts.map(({ step }) => step)).toEqual([40]);
  expect(progress.evaluations.map(({ step }) => step)).toEqual([0, 20, 40]);
});
