import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { targets } from '../../bench/gpu/targets.mjs';

const python = process.env.RELORA_TEST_PYTHON ?? 'python3';
const lacksTorch = spawnSync(python, ['-c', 'import torch']).status !== 0;
if (lacksTorch)
  console.warn(`Skipped: turns with PyTorch, which ${python} (RELORA_TEST_PYTHON) does not have`);
/** A command that is no Python with torch, whatever this machine has. */
const noPython = ['--python', 'false'];
const scriptPath = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

const folder = mkdtempSync(join(tmpdir(), 'relora-check-gpu-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Set by `npm run test:full`: sections that take minutes on a model, too. */
const isWhole = process.env.TEST_GPU_REHEARSAL === 'whole';

/** Runs a script for users with a card; on the model of a card unless `isModel` is false. */
async function run(
  script: string,
  sections: string,
  { environment = {}, isModel = true, more = ['--seconds', '900'] }: RunOptions = {},
) {
  const path = fileURLToPath(new URL(`../../bench/gpu/${script}.mjs`, import.meta.url));
  const report = join(mkdtempSync(join(folder, `${script}-`)), 'report.md');
  const model = isModel ? ['--model'] : [];
  const args = [path, ...model, '--only', sections, '--report', report, ...more];
  const code = await new Promise<number>((resolve) => {
    execFile(process.execPath, args, { env: { ...process.env, ...environment } }, (error) =>
      resolve(error === null ? 0 : Number(error.code)),
    );
  });
  const rows = readFileSync(report, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('| ') && !line.startsWith('| section') && !line.startsWith('| ---'))
    .map((line) => line.split(' | '))
    .map(([section, what, outcome, figures]) => ({
      ...{ section: section!.slice(2), what: what!, outcome: outcome!, figures: figures! },
    }));
  /** Sections with a row of an outcome. */
  const sectionsOf = (wanted: string) => [
    ...new Set(rows.filter(({ outcome }) => outcome === wanted).map(({ section }) => section)),
  ];
  return { code, rows, sectionsOf, outcomes: rows.map(({ outcome }) => outcome) };
}

interface RunOptions {
  environment?: NodeJS.ProcessEnv;
  isModel?: boolean;
  more?: string[];
}

const goals = ['G1', 'G2', 'G3', 'G4', 'G5', 'G6', 'G7', 'G8', 'G9'];

describe('what somebody with a card runs', () => {
  it('checks the card, its kernels, its products, halves of blocks, a run and its memory', async () => {
    const { code, sectionsOf, outcomes } = await run(
      'check',
      'kernels,products,wide,golden,memory,sanitizer',
    );
    expect(sectionsOf('ok')).toEqual(['card', 'kernels', 'products', 'wide', 'golden', 'memory']);
    expect(outcomes.filter((outcome) => outcome === 'not run')).toHaveLength(1); // no sanitizer without a card
    expect(outcomes).not.toContain('FAULT');
    expect(code).toBe(0);
  });

  it.runIf(isWhole)(
    'checks every call, in FP8 too, the bits of resumed runs, and a job of a server',
    async () => {
      const { code, rows, sectionsOf } = await run('check', 'conformance,repeated,service');
      expect(rows.filter(({ outcome }) => outcome !== 'ok')).toEqual([]);
      expect(sectionsOf('ok')).toEqual(['card', 'conformance', 'repeated', 'service']);
      expect(rows.filter(({ what }) => what.endsWith('fp8'))).toHaveLength(1);
      expect(code).toBe(0);
    },
  );

  it('reports each section that a lost card ends, and ends with a status', async () => {
    const { code, rows, sectionsOf } = await run('check', 'products,memory', {
      environment: { CUDA_MODEL_LOSE_AFTER_LAUNCHES: '3' },
    });
    expect(code).toBe(1);
    expect(sectionsOf('FAULT')).toEqual(['products', 'memory']);
    expect(rows.map(({ figures }) => figures).join()).toContain('CUDA_ERROR_ECC_UNCORRECTABLE');
  });

  it.each(['check', 'bench'])(
    '%s reports a missing card with its remedy, and runs nothing',
    async (script) => {
      const { code, rows } = await run(script, script === 'check' ? 'golden' : 'steps', {
        ...{ isModel: false, more: ['--libraries', folder, '--card', '17'] },
      });
      const [card, section] = rows;
      expect(card).toMatchObject({ section: 'card', outcome: 'FAULT' });
      expect(card!.figures).toMatch(/^DEVICE_(LIBRARY_MISSING|NOT_FOUND|DRIVER_TOO_OLD): /);
      expect(section).toMatchObject({ outcome: 'not run', figures: 'there is no card to run it on' });
      expect(code).toBe(1);
    },
  );

  it('begins nothing when the time is over, and says what was not measured', async () => {
    const { code, rows, sectionsOf } = await run('bench', 'steps,replays', {
      more: ['--seconds', '0', ...noPython],
    });
    expect(sectionsOf('not run')).toEqual(['steps', 'replays']);
    expect(rows.filter(({ outcome }) => outcome === 'not run').map(({ figures }) => figures)).toEqual(
      Array.from({ length: 2 }, () => 'the time is over'),
    );
    expect(sectionsOf('not measured')).toEqual(['card', ...goals]);
    expect(code).toBe(0);
  });

  it('measures steps, restarts, memory and what auto takes', async () => {
    const sections = 'compiling,steps,merges,memory,replays,small,products';
    const { code, rows, sectionsOf } = await run('bench', sections, {
      more: ['--seconds', '900', ...noPython],
    });
    expect(code).toBe(0);
    expect(sectionsOf('measured')).toEqual(sections.split(',').slice(1));
    expect(rows.find(({ section }) => section === 'steps')!.figures).toMatch(
      /^[\d.]+ k tokens\/s .* GB, loss 5\.\d+$/,
    );
    expect(rows.find(({ section }) => section === 'small')!.figures).toMatch(
      /^card [\d.]+, processor [\d.]+ k tokens\/s; auto takes native: (right|wrong)$/,
    );
  });

  it.runIf(isWhole)('measures full rank and an FP8 base', async () => {
    const { code, sectionsOf } = await run('bench', 'fullRank,fp8', {
      more: ['--seconds', '900', ...noPython],
    });
    expect(code).toBe(0);
    expect(sectionsOf('measured')).toEqual(['fullRank', 'fp8']);
  });

  it.skipIf(lacksTorch)('takes turns with PyTorch, padded and not', async () => {
    const { code, rows } = await run('bench', 'steps,fullRank,variants', {
      more: ['--seconds', '900', '--python', python],
    });
    const measured = rows.filter(({ what, outcome }) => /PyTorch/.test(what) && outcome === 'measured');
    expect(measured.map(({ what }) => what)).toEqual([
      ...['merged', 'merged, not padded', 'full rank'].map((kind) => `tiny, PyTorch ${kind}`),
      ...['merged, compiled as a whole, max-autotune', 'adapters', 'full rank, not padded'].map(
        (kind) => `tiny, PyTorch ${kind}`,
      ),
    ]);
    for (const { figures } of measured) expect(figures).toMatch(/ours is [\d.]+ x of it$/);
    expect(code).toBe(0);
  });

  it.runIf(isWhole)('is packed with all that it needs', async () => {
    const packed = join(folder, 'packed');
    const node = (path: string, args: string[], options = {}) =>
      new Promise<string>((resolve) =>
        execFile(path, args, options, (error, stdout, stderr) => resolve(stdout + stderr)),
      );
    await node(process.execPath, [scriptPath('scripts/packForCard.mjs'), '--folder', packed]);
    const bare = { cwd: packed, env: { HOME: folder } };
    const said = await node(join(packed, 'bin/node'), ['bench/gpu/bench.mjs', '--only', 'steps'], bare);
    expect(said).toContain('State of the Union');
    expect(said).toMatch(/DEVICE_(LIBRARY_MISSING|NOT_FOUND|DRIVER_TOO_OLD)|measured {5}steps/);
  });

  it('is described with the targets that it measures', () => {
    const page = readFileSync(scriptPath('docs/gpu.md'), 'utf8');
    const rows = page.split('\n').filter((line) => /^\| G\d /.test(line));
    const named = rows.map((row) => row.split('|').map((cell) => cell.trim()));
    expect(named.map((cells) => cells.slice(1, 5))).toEqual(
      targets.map(({ name, what, limit, target, goal, unit }) => [
        name,
        what,
        `${limit === 'least' ? '≥' : '≤'} ${target.toLocaleString('en')} ${unit}`,
        goal === target ? '' : `${goal.toLocaleString('en')} ${unit}`,
      ]),
    );
  });
});
