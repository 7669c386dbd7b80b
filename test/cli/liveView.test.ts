import { EventEmitter } from 'node:events';
import { LiveView } from '@relora/cli';
import { AdapterGraph, JobState, Precision, Recomputation, TargetModule, type JobEvent } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';

class Screen extends EventEmitter {
  isTTY = true;
  columns = 60;
  rows = 20;
  written = '';
  write(text: string): void {
    this.written += text;
  }
}

const event = (body: object): JobEvent =>
  ({
    sequence: 1,
    time: new Date(0),
    final: false,
    attempt: 1,
    kind: Object.keys(body)[0],
    ...body,
  }) as JobEvent;
const running = event({ state: { to: JobState.RUNNING, reason: 'Training' } });
const step = (number: number) =>
  event({
    step: {
      step: number,
      loss: 2,
      learningRate: 1e-3,
      gradientNorm: 1,
      tokenCount: 10,
      trainedTokens: 10,
      stepSeconds: 1,
    },
  });

test('draws over the last picture and gives the cursor back once', () => {
  const screen = new Screen();
  const view = new LiveView(screen, { title: 'jobs/job-1', stepCount: 10 });
  expect(screen.written).toBe('\u001b[?25l');
  view.update(running);
  view.update(step(0));
  expect(screen.written).toBe('\u001b[?25l'); // not for every event
  screen.emit('resize');
  const lines = screen.written.split('\n').length - 1;
  screen.written = '';
  view.close();
  view.close();
  expect(screen.written.startsWith(`\u001b[${lines}A\r`)).toBe(true);
  expect(screen.written.endsWith('\u001b[J\u001b[?25h')).toBe(true);
  expect(screen.written.match(/\?25h/g)).toHaveLength(1);
  expect(screen.listenerCount('resize')).toBe(0);
});

test('begins on an empty screen when the terminal has another size', () => {
  const screen = new Screen();
  const view = new LiveView(screen, { title: 'jobs/job-1', stepCount: 10 });
  onTestFinished(() => view.close());
  view.update(running);
  screen.emit('resize');
  screen.written = '';
  Object.assign(screen, { columns: 20, rows: 5 });
  screen.emit('resize');
  expect(screen.written.startsWith('\u001b[H\u001b[2J\r')).toBe(true);
  expect(screen.written.split('\n').length - 1).toBeLessThan(5);
});

test('no colors with NO_COLOR', () => {
  process.env.NO_COLOR = '1';
  onTestFinished(() => void delete process.env.NO_COLOR);
  const screen = new Screen();
  const view = new LiveView(screen, { title: 'jobs/job-1', stepCount: 10 });
  view.update(step(0));
  view.close();
  expect(screen.written).not.toMatch(/\u001b\[[\d;]*m/);
});

test('plain lines where there is no terminal', () => {
  const screen = Object.assign(new Screen(), { isTTY: false });
  const view = new LiveView(screen, { title: 'jobs/job-1', stepCount: 0 });
  for (const next of [
    running,
    step(0),
    step(1),
    event({ sample: { step: 2, prompt: 'a\u001b[2J', text: '\nb' } }),
  ])
    view.update(next);
  view.close();
  expect(screen.written.split('\n')).toEqual([
    'jobs/job-1: running (Training)',
    'step 1  loss 2.000  rate 1.00e-3  gradient norm 1  10 tokens/s',
    'sample after 2 steps: a [2J b',
    '',
  ]);
});

test('says how the adapter phase is computed, in words', () => {
  const screen = Object.assign(new Screen(), { isTTY: false });
  const view = new LiveView(screen, { title: 'jobs/job-1', stepCount: 0 });
  const plan = {
    step: 100,
    graphs: [
      { module: TargetModule.Q_PROJ, graph: AdapterGraph.MERGED },
      { module: TargetModule.UP_PROJ, graph: AdapterGraph.MERGED },
      { module: TargetModule.DOWN_PROJ, graph: AdapterGraph.SEPARATE },
    ],
    plannedOperations: 2e11,
    separateOperations: 3e11,
    plannedSeconds: 1.25,
    separateSeconds: 1.5,
    recomputation: Recomputation.NONE,
    precision: Precision.BFLOAT16,
    basePrecision: Precision.INT8_BASE,
    instructionSet: 'avx512bf16',
  };
  view.update(event({ plan }));
  view.update(event({ plan: { ...plan, plannedSeconds: undefined, separateSeconds: undefined } }));
  view.close();
  const [timed, notTimed] = screen.written.split('\n');
  expect(timed).toBe(
    'plan from step 100: graph merged but down_proj separate; 200 GFLOP a step in adapted layers, 300 GFLOP with separate graphs; measured 1.25 s per step, 1.5 s with separate graphs; base int8-base, recomputation none, avx512bf16',
  );
  expect(notTimed).toContain('; not timed; ');
});
