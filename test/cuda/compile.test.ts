import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { readCompilerLog } from '../../engine/dist/device/cuda/compilerLog.js';
import {
  listKernelFiles,
  parseKernelText,
  readKernelFile,
} from '../../engine/dist/device/cuda/kernelText.js';
import { architectures, kernelVariants } from '../../engine/dist/device/cuda/kernelVariants.js';
import { patienceMs } from '../patience.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));

describe('texts of kernels', () => {
  it('parameters are laid out as the compiler does', () => {
    const { kernels } = parseKernelText(
      'odd',
      'struct OddParameters {\n  int first;  // why\n  const bf16* where;\n  float last;\n};\nKERNEL(odd, OddParameters, 64) {}\n',
    );
    expect(kernels).toEqual([
      {
        name: 'odd',
        threads: 64,
        parameters: {
          name: 'OddParameters',
          bytes: 24,
          fields: [
            { name: 'first', kind: 'int', offset: 0 },
            { name: 'where', kind: 'pointer', offset: 8 },
            { name: 'last', kind: 'float', offset: 16 },
          ],
        },
      },
    ]);
  });

  it.each(['  int a, b;', '  short a;', '  Words4 a;'])(
    'a field that is not plain is refused: %s',
    (field) => {
      const text = `struct OddParameters {\n${field}\n};\nKERNEL(odd, OddParameters, 64) {}\n`;
      expect(() => parseKernelText('odd', text)).toThrow(
        'odd.cu: expected a pointer, int, u32 or float a line in OddParameters, got',
      );
    },
  );

  it('every kernel of every file is found', () => {
    for (const file of listKernelFiles()) {
      const { source, kernels } = readKernelFile(file);
      expect(kernels.length, file).toBe([...source.matchAll(/^KERNEL\(/gm)].length);
      expect(kernelVariants().some((variant) => variant.file === file)).toBe(true);
    }
  });
});

it('reads registers, shared memory, spills and warnings from the log of the compiler', () => {
  const log = `a.cu(3): warning #177-D: variable "x" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 8 bytes stack, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 2048 bytes smem, 376 bytes cmem[0]
`;
  expect(readCompilerLog(log)).toEqual({
    kernels: [
      { kernel: 'one', registers: 128, sharedBytes: 0, spilledBytes: 16, stackBytes: 8 },
      { kernel: 'two', registers: 30, sharedBytes: 2048, spilledBytes: 0, stackBytes: 0 },
    ],
    warnings: ['a.cu(3): warning #177-D: variable "x" was declared but never referenced'],
  });
});

it.skipIf(process.env.NVRTC_ENVIRONMENT === undefined)(
  'every kernel compiles for the oldest and the newest architectures without spills or warnings',
  async () => {
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ['scripts/compileKernels.mjs', '--slice'],
      {
        cwd: root,
      },
    );
    expect(stdout).toMatch(/^\d+ kernels compiled, 0 faults$/m);
  },
  2 * patienceMs,
);

it('the kept table has every kernel, and none that spills', () => {
  const table = readFileSync(`${root}/bench/results/kernels.md`, 'utf8');
  const rows = table
    .split('\n')
    .filter((line) => /^\| \w+ \| [^-]/.test(line) || /^\| \w+ \|  \|/.test(line));
  for (const { file, definitions } of kernelVariants())
    for (const { name } of readKernelFile(file).kernels) {
      const row = rows.find((line) => line.startsWith(`| ${name} | ${definitions.join(' ')} |`));
      expect(row, `${name} ${definitions.join(' ')}: run node scripts/compileKernels.mjs`).toBeDefined();
      expect(row!.endsWith('| 0 |'), row).toBe(true);
      expect(row!.split('|')).toHaveLength(architectures.length + 6);
    }
});
