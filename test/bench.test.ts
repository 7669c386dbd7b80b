import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import { loadNativeAddon } from '@relora/engine';
import * as exactness from '../bench/exactness.mjs';
import { rowOf, withRow } from '../bench/kinds.mjs';
import { deviationsOf, smoothed } from '../bench/lossBand.mjs';
import { readOptions } from '../bench/options.mjs';
import { planned } from '../bench/planned.mjs';
import { barPanel } from '../bench/plots/bars.mjs';
import { linePanel } from '../bench/plots/lines.mjs';
import { figure } from '../bench/plots/svg.mjs';
import { reloraRecipe, stepOf } from '../bench/recipe.mjs';
import { sections } from '../bench/sections.mjs';
import { findPytorch, Session } from '../bench/session.mjs';
import { alternate } from '../bench/sides/alternate.mjs';
import { Child } from '../bench/sides/child.mjs';
import { isProduct } from '../bench/sides/kernelCosts.mjs';
import { judged } from '../bench/targets.mjs';

const addon = loadNativeAddon();
const machine = addon.describe();

/** A device that was never measured: operations do not depend on it. */
const device = {
  instructionSet: machine.instructionSets[0],
  threadCount: 1,
  autoPrecision: 'float32',
  float32Flops: 1,
  bfloat16Flops: 1,
  int8Flops: 1,
  memoryBytesPerSecond: 1,
};

const side = {
  engine: 'relora',
  preset: 'llama-9m',
  vocabSize: 257,
  layerCount: 1,
  rank: 4,
  batch: 2,
  time: 16,
  precision: 'float32',
};

function newSession() {
  const pytorch = { command: null, version: null, reason: 'not asked for' };
  const options = { addon, instructionSet: machine.instructionSets[0], threads: 1, pytorch };
  return new Session({ ...options, say: () => undefined });
}

const children: Child[] = [];
afterEach(async () => {
  await Promise.all(children.splice(0).map((child) => child.close()));
});

async function open(changes = {}): Promise<Child> {
  const child = await newSession().open({ ...side, ...changes });
  children.push(child);
  return child;
}

async function startScript(script: string): Promise<Child> {
  const child = await Child.start(process.execPath, ['-e', script]);
  children.push(child);
  return child;
}

describe('a side of a comparison', () => {
  it.runIf(process.platform === 'linux')('stands still until it is asked', async () => {
    // Answers at once with its process id, and on request with the number of its timer's ticks.
    const child = await startScript(`
      let ticks = 0;
      setInterval(() => ticks++, 1);
      console.log(JSON.stringify({ pid: process.pid }));
      process.stdin.on('data', () => console.log(JSON.stringify({ ticks })));
    `);
    const state = () => /\) (\w) /.exec(readFileSync(`/proc/${child.greeting.pid}/stat`, 'utf8'))![1];
    await expect.poll(state).toBe('T');
    expect(await child.ask({})).toHaveProperty('ticks');
    await expect.poll(state).toBe('T');
  });

  it('that dies says how, and with its last words', async () => {
    const child = await startScript(`
      console.log('{}');
      process.stdin.once('data', () => { console.error('no memory left'); process.exit(3); });
    `);
    await expect(child.ask({ step: {} })).rejects.toThrow(/it ended with 3; no memory left/);
  });

  it('that cannot be started says why', async () => {
    await expect(Child.start('/nowhere/python', [])).rejects.toThrow('ENOENT');
  });

  it('trains, merges and evaluates given tokens by its recipe', async () => {
    const recipe = reloraRecipe({
      stepCount: 24,
      peak: 3e-3,
      rank: 4,
      adapterPeak: 6e-3,
      warmStartStepCount: 8,
      cycleStepCount: 8,
    });
    const child = await open({ rank: 0 });
    const tokens = Array.from({ length: 32 }, (_, i) => (i * i) % 17);
    const batch = { inputs: tokens, targets: [...tokens.slice(1), -1] };
    const losses: number[] = [];
    for (let step = 0; step < recipe.stepCount; step++)
      losses.push((await stepOf(child, recipe, step, batch)).loss);
    expect(losses[8]).toBeLessThan(losses[0]!);
    expect(losses[23]).toBeLessThan(losses[8]!);
    const { sum, count } = await child.ask({ evaluate: batch });
    expect(count).toBe(31);
    expect(sum / count).toBeLessThan(losses[23]!);
  });

  it('refuses a precision that the engine does not have, by name', async () => {
    await expect(open({ precision: 'int3' })).rejects.toThrow(/int3/);
  });

  it('is measured in turn with others, and left out when it fails', async () => {
    const failing = await startScript(`
      console.log('{}');
      process.stdin.once('data', () => console.log('{"error":"out of order"}'));
    `);
    const [good, bad] = await alternate([await open(), failing], { warmUps: 1, repeats: 3 });
    expect(good.secondsBest).toBeGreaterThan(0);
    expect(good.secondsMedian).toBeGreaterThanOrEqual(good.secondsBest);
    expect(good.last.peakBytes).toBeGreaterThan(20e6);
    expect(bad).toEqual({ failure: 'out of order' });
  });

  it.each([0, 4])(
    'counts in its kernels the operations that the plan has for a step of rank %i',
    async (rank) => {
      const child = await open({ rank, isProfiled: true, graph: 'separate' });
      await child.ask({ profile: {} });
      await child.ask({ step: {} });
      const { kernels } = await child.ask({ profile: {} });
      delete kernels.mlpHalfStateLength; // it only computes a size
      delete kernels.attentionHalfStateLength;
      const counted = Object.values(kernels as Record<string, { operations: number; bytes: number }>);
      const operations = counted.reduce((sum, kernel) => sum + kernel.operations, 0);
      const plan = planned({ ...side, rank }, device).operations;
      expect(operations / plan).toBeCloseTo(1, 6);
      expect(Object.keys(kernels).some(isProduct)).toBe(true);
      expect(counted.every(({ bytes }) => bytes > 0)).toBe(true);
    },
  );
});

describe('PyTorch beside it', () => {
  it('is reported missing together with the way to install it', async () => {
    const { command, reason } = await findPytorch('/nowhere/python');
    expect(command).toBeNull();
    expect(reason).toContain('pip install torch');
  });
});

describe('options', () => {
  const read = (...args: string[]) => readOptions(args, sections, machine);

  it('choose sections: the quick ones, all, or those named', () => {
    expect(read().sections.every(({ isFull }) => !isFull)).toBe(true);
    expect(read('--full').sections).toEqual(sections);
    expect(read('--only', 'lossBand,head').sections.map(({ name }) => name)).toEqual(['head', 'lossBand']);
  });

  it('say what they expected', () => {
    expect(() => read('--only', 'stepz')).toThrow(/--only: expected some of machine, .*, got stepz/);
    expect(() => read('--set', 'mmx')).toThrow(/--set: expected one of .*, got mmx/);
    expect(() => read('--report', '--full')).toThrow(/--report: chooses the sections itself/);
    expect(() => read('--threads', '0')).toThrow(/--threads: expected a whole number from 1, got 0/);
  });

  it('are printed by --help, without a measurement', () => {
    const bench = fileURLToPath(new URL('../bench/bench.mjs', import.meta.url));
    const text = execFileSync(process.execPath, [bench, '--help'], { encoding: 'utf8' });
    for (const { name } of sections) expect(text).toContain(name);
  });
});

describe('units for matrices', () => {
  const product = { rows: 5, inFeatures: 33, out: 17 };
  /** The addon of a machine with AMX, whose instructions are those of `stand`. */
  const withAmx = (stand: string) => ({
    ...addon,
    describe: () => ({ ...machine, instructionSets: ['amx', ...machine.instructionSets] }),
    configure: ({ instructionSet, threads }: { instructionSet: string; threads: number }) =>
      addon.configure({
        instructionSet: (instructionSet === 'amx' ? stand : instructionSet) as 'portable',
        threads,
      }),
  });
  const run = (stand: string) =>
    exactness.run({ addon: withAmx(stand), instructionSet: machine.instructionSets[0], threads: 1 }, product);

  it('are held to their models bit for bit', () => {
    const [amx, neon] = run('amx-model');
    expect(amx!.rows.map(({ precision, differing }) => [precision, differing])).toEqual([
      ['bfloat16', []],
      ['int8', []],
      ['nf4', []],
    ]);
    expect(amx!.rows.every(({ share, peak }) => share > 0 && peak > 0)).toBe(true);
    if (process.arch === 'x64') expect(neon).toMatchObject({ failure: 'not there', rows: [] });
    // Other instructions change the order of sums.
    const [other] = run('portable');
    expect(other!.rows[0]!.differing).toContain('y of 33x130x67x5');
    expect(exactness.report([other!])).toContain('different: ');
  });

  it('are said not to be there where they are not', () => {
    const without = { ...addon, describe: () => ({ ...machine, instructionSets: ['portable'] }) };
    const session = { addon: without, instructionSet: machine.instructionSets[0], threads: 1 };
    expect(exactness.report(exactness.run(session))).toMatch(/- amx: not there\n- neonBf16: not there$/);
  });
});

describe('the table of processors', () => {
  const page = readFileSync(new URL('../docs/performance.md', import.meta.url), 'utf8');
  const results = {
    machine: {
      cpuModel: 'Some CPU',
      instructionSet: 'amx',
      threads: 4,
      peaks: { float32: 1, bfloat16: 8, int8: null },
    },
    exactness: [{ set: 'amx', failure: null, rows: [{ precision: 'int8', differing: [], share: 0.4 }] }],
  };

  it('gets the row of a run, in place of an older one of the same processor', () => {
    const lines = (text: string) => text.split('\n').filter((line) => line.includes('| [run]'));
    const once = withRow(page, rowOf(results, 'the-first'));
    expect(lines(once)).toHaveLength(lines(page).length + 1);
    expect(lines(once).at(-1)).toMatch(
      /^\| Some CPU, 4 threads +\| amx +\| tiles +\| 1, 8, – .*\| amx equal, int8 40 % +\| \[run\]\(.*the-first.md\) +\|$/,
    );
    const twice = withRow(once, rowOf(results, 'the-second'));
    expect(lines(twice)).toHaveLength(lines(once).length);
    expect(twice).not.toContain('the-first');
    // The text around the table does not change.
    const begin = page.indexOf('<!-- kinds');
    expect(twice.slice(0, begin)).toBe(page.slice(0, begin));
    expect(twice.endsWith(page.slice(page.indexOf('<!-- end of kinds')))).toBe(true);
  });
});

describe('targets', () => {
  const results = (peakShare: number) => ({
    machine: { instructionSet: 'avx512' },
    steps: [
      {
        engine: 'relora',
        preset: 'llama-60m',
        rank: 128,
        precision: 'float32',
        secondsBest: 1,
        peakBytes: 100,
      },
      {
        engine: 'relora',
        preset: 'llama-60m',
        rank: 128,
        precision: 'int8Base',
        secondsBest: 0.1,
        peakBytes: 300,
      },
      { engine: 'pytorch', preset: 'llama-60m', rank: 128, secondsBest: 2, peakBytes: 100 / peakShare },
    ].map((row) => ({ ...row, failure: null, planned: null, mergeSeconds: null })),
  });
  const find = (subject: string, peakShare = 0.5) =>
    judged(results(peakShare)).find((row) => row.subject === subject)!;

  it('are met or missed by a factor, whichever way they point', () => {
    expect(find('speed 60m')).toMatchObject({
      target: '>= 1.15x',
      measured: '2.00x',
      met: true,
      margin: 2 / 1.15,
    });
    expect(find('memory 60m')).toMatchObject({
      target: '<= 0.35x',
      measured: '0.50x',
      met: false,
      margin: 0.7,
    });
    expect(find('memory 60m', 0.25)).toMatchObject({ met: true });
  });

  it('hold the slowest adapted step against full rank of the same preset', () => {
    const row = { engine: 'relora', preset: 'demo', precision: 'float32', failure: null, planned: null };
    const steps = [
      { ...row, rank: 0, secondsBest: 2 },
      { ...row, rank: 8, secondsBest: 1 },
      { ...row, rank: 64, secondsBest: 4 },
    ];
    const slowest = judged({ ...results(1), steps }).find(({ subject }) => subject === 'own full rank');
    expect(slowest).toMatchObject({ measured: '0.50x', detail: 'demo r=64', met: false });
  });

  it('that were not measured are neither', () => {
    expect(find('threads')).toMatchObject({ measured: null, met: null, margin: null });
  });
});

describe('a loss band', () => {
  it('compares means over the same steps', () => {
    const reference = Array.from({ length: 40 }, (_, step) => 8 - step / 10);
    const other = reference.map((loss) => 1.01 * loss);
    expect(smoothed(reference)).toHaveLength(21);
    const { largest, mean } = deviationsOf(other, smoothed(reference));
    expect(largest).toBeCloseTo(0.01, 12);
    expect(mean).toBeCloseTo(0.01, 12);
  });
});

describe('a plot', () => {
  it('holds every bar and curve, with what they are called', () => {
    const bars = barPanel({ title: 'Speed', bars: [{ label: 'a < b', value: 2, shown: '2 s', tone: 0 }] });
    const lines = linePanel({
      title: 'Loss',
      lines: [
        {
          label: 'one',
          points: [
            [0, 1],
            [1, 0.5],
          ],
        },
      ],
    });
    const svg = figure('A machine', [bars, lines]);
    for (const word of ['A machine', 'Speed', 'a &lt; b', '2 s', 'Loss', 'one']) expect(svg).toContain(word);
    expect(svg).not.toMatch(/NaN|undefined/);
  });
});
