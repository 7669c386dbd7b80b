import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { nativeUnits, root } from '../../engine/native/units.mjs';
import { innerLoops } from '../engine/innerLoops.js';

// Machine code of the inner loops of ARM's product kernels. Cross compilers are enough: nothing is run.
const has = (tool: string, ...args: string[]) => spawnSync(tool, [...args, '--version']).status === 0;
const objdump = ['aarch64-linux-gnu-objdump', 'llvm-objdump-19', 'llvm-objdump'].find((tool) => has(tool));
const mca = ['llvm-mca-19', 'llvm-mca-18', 'llvm-mca-17', 'llvm-mca-16'].find((tool) => has(tool));
const compilers = [
  { name: 'g++', command: 'aarch64-linux-gnu-g++', args: [] as string[] },
  ...['clang++-19', 'clang++-18', 'clang++-17', 'clang++-16', 'clang++']
    .filter((command) => has(command, '--target=aarch64-linux-gnu'))
    .slice(0, 1)
    .map((command) => ({ name: 'clang++', command, args: ['--target=aarch64-linux-gnu'] })),
].filter(({ command, args }) => objdump !== undefined && has(command, ...args));

/**
 * Loops of the largest tile: its function and source file, its multiply instruction and their number. `least`: vector multiply-adds per
 * cycle on Neoverse V1, which issues four instructions of a kind per cycle, each with as many multiply-adds of four float32 as `each` says.
 */
const loops = [
  {
    ...{ what: 'float32', unit: 'gemm.kernel.neon', tile: 'MultiplyFloat32, 6ul, 4ul>' },
    ...{ instruction: 'fmla', count: 24, each: 1, least: 3.4 },
  },
  {
    ...{ what: 'bfloat16 widened', unit: 'gemm.kernel.neon', tile: 'MultiplyWidened, 6ul, 4ul>' },
    ...{ instruction: 'fmla', count: 48, each: 1, least: 3.1 },
  },
  {
    ...{ what: 'int8 as floats', unit: 'gemm.kernel_int8.neon', tile: 'MultiplyQuads, 6ul, 3ul>' },
    ...{ instruction: 'fmla', count: 72, each: 1, least: 2 },
  },
  {
    ...{ what: 'SDOT', unit: 'gemm.kernel_int8.neonDot', tile: 'MultiplyQuads, 6ul, 4ul>' },
    ...{ instruction: 'sdot', count: 24, each: 4, least: 11 },
  },
  {
    ...{ what: 'BFMMLA', unit: 'gemm.kernel_matrix.neonBf16', tile: 'Pairs, 4ul>' },
    ...{ instruction: 'bfmmla', count: 24, each: 4, least: 11 },
  },
  {
    ...{ what: 'SMMLA', unit: 'gemm.kernel_matrix.neonBf16', tile: 'Quads, 4ul>' },
    ...{ instruction: 'smmla', count: 24, each: 8, least: 20 },
  },
];
const jumps = { backward: /^b\.\w+\s+(?:0x)?([0-9a-f]+)/, any: /^(b|b\.\w+|cbn?z|tbn?z|bl|ret)(\s|$)/ };
type Loop = (typeof loops)[number];

describe.each(compilers)('loops for ARM as compiled by $name', ({ command, args }) => {
  const folder = mkdtempSync(join(tmpdir(), 'relora-arm-loops-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  beforeAll(() => {
    const version = execFileSync(command, [...args, '--version'], { encoding: 'utf8' });
    const units = nativeUnits({ arch: 'arm64', compiler: { command, args, version } });
    for (const unit of new Set(loops.map((loop) => loop.unit))) {
      const { source, flags } = units.find((candidate) => candidate.name === unit)!;
      const file = join(folder, `${unit}.o`);
      const { status, stderr } = spawnSync(
        command,
        [...args, ...flags, '-c', join(root, source), '-o', file],
        {
          encoding: 'utf8',
        },
      );
      expect([status, stderr], unit).toEqual([0, '']); // also requires that there are no warnings
    }
  }, 3_600_000);

  it.each(loops)('keep the sums of $what in registers', (loop) => {
    const found = loopsOf(folder, loop);
    expect(found).not.toEqual([]);
    const written = found.flat().filter((line) => /^st[a-z]*\s.*\[sp/.test(line));
    expect(written).toEqual([]);
  });

  // By LLVM 19's model: a figure of the compiled code, not of a processor.
  it.skipIf(mca === undefined).each(loops)(
    'of $what start $least multiply-adds of four a cycle and more on Neoverse V1, says its model (needs llvm-mca)',
    (loop) => {
      const bodies = loopsOf(folder, loop);
      const rates = bodies.map((body) => (loop.each * loop.count) / cyclesOf(body, 'neoverse-v1'));
      expect(Math.min(...rates)).toBeGreaterThanOrEqual(loop.least);
    },
  );
});

it.skipIf(compilers.length > 0)(
  'loops for ARM (needs aarch64-linux-gnu-g++, or clang and an objdump)',
  (context) => {
    context.skip();
  },
);

/** Straight-line loops in the tile with that many of its instruction, each ending with its jump. */
function loopsOf(folder: string, { unit, tile, instruction, count }: Loop): string[][] {
  const args = ['-d', '-C', '--no-show-raw-insn', join(folder, `${unit}.o`)];
  const text = execFileSync(objdump!, args, { encoding: 'utf8', maxBuffer: 1 << 27 });
  return text
    .split(/^[0-9a-f]+ (?=<)/m)
    .filter((code) => code.split('\n', 1)[0]!.includes(tile))
    .flatMap((code) => innerLoops(code, jumps))
    .filter((loop) => loop.filter((line) => line.startsWith(`${instruction} `)).length === count);
}

/** Cycles per iteration of a loop on a core, by LLVM's model of it. */
function cyclesOf(loop: string[], core: string): number {
  const turns = 1000;
  const input = `loop:\n${loop.map((line) => line.replace(/^(b\.\w+) .*/, '$1 loop')).join('\n')}\n`;
  const args = [
    '-mtriple=aarch64',
    `-mcpu=${core}`,
    '-mattr=+bf16,+i8mm,+dotprod,+fullfp16',
    `-iterations=${turns}`,
  ];
  const report = execFileSync(mca!, args, { input, encoding: 'utf8' });
  return Number(/Total Cycles:\s+(\d+)/.exec(report)![1]) / turns;
}
