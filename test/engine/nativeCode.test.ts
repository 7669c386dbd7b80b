import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { innerLoops } from './innerLoops.js';

// Machine code of the native kernels. Object files are named source.instructionSet.digest.o.
const build = fileURLToPath(new URL('../../engine/native/build/', import.meta.url));
const objects = readdirSync(build).filter((file) => file.endsWith('.o'));
const ofSet = (set: string) => objects.filter((file) => file.split('.').at(-3) === set);
const has = (tool: string) => spawnSync(tool, ['--version']).status === 0;
const [isX64, hasObjdump] = [process.arch === 'x64', has('objdump')];
const newer = ['avx2', 'avx512', 'avx512bf16', 'avx512vnni', 'amx'];

const jumps = { backward: /^j[a-z]+\s+([0-9a-f]+)/, any: /^j/ };

const disassemble = (file: string) =>
  execFileSync('objdump', ['-d', '--no-show-raw-insn', file], {
    cwd: build,
    encoding: 'utf8',
    maxBuffer: 1 << 27,
  });

describe.skipIf(!isX64)('the compiled kernels (only of x86-64)', () => {
  it.skipIf(!has('nm'))(
    'functions compiled for one instruction set cannot be linked into code for another (needs nm)',
    () => {
      for (const set of newer) {
        expect(ofSet(set), set).not.toEqual([]);
        const symbols = execFileSync('nm', ['-C', ...ofSet(set)], { cwd: build, encoding: 'utf8' });
        // Weak symbols are shared between files, so the linker could keep the copy compiled for the newest instruction set.
        const weak = symbols
          .split('\n')
          .filter((line) => / [Wu] /.test(line) && !line.includes(`relora::${set}::`));
        expect(weak, set).toEqual([]);
      }
    },
  );

  // A vector moved through an MMX register leaves the x87 unit unusable for the caller: its results are then NaN.
  it.skipIf(!hasObjdump).each(['portable', ...newer])(
    'code for %s leaves the x87 registers alone (needs objdump)',
    (set) => {
      for (const file of ofSet(set)) {
        const touching = disassemble(file)
          .split('\n')
          .filter((line) => /%mm[0-7]/.test(line));
        expect(touching, file).toEqual([]);
      }
    },
  );

  it.skipIf(!hasObjdump).each([
    { file: 'gemm.kernel_avx512bf16.avx512bf16', instruction: 'vdpbf16ps', register: '%zmm', count: 24 },
    { file: 'gemm.kernel_int8.avx512vnni', instruction: 'vpdpbusd', register: '%zmm', count: 24 },
    { file: 'gemm.kernel_int8.avx2', instruction: 'vpmaddwd', register: '%ymm', count: 24 },
    { file: 'gemm.kernel.avx512', instruction: 'vfmadd', register: '%zmm', count: 24 }, // float32
    { file: 'gemm.kernel.avx512', instruction: 'vfmadd', register: '%zmm', count: 56 }, // widened bfloat16
    { file: 'gemm.kernel.avx2', instruction: 'vfmadd', register: '%ymm', count: 12 },
    { file: 'gemm.kernel.avx2', instruction: 'vfmadd', register: '%ymm', count: 24 },
    { file: 'gemm.kernel_amx.amx', instruction: 'tdpbf16ps', register: '%tmm', count: 4 },
    { file: 'gemm.kernel_amx.amx', instruction: 'tdpbssd', register: '%tmm', count: 4 },
  ])(
    'the loop of $count $instruction in $file keeps its sums in registers (needs objdump)',
    ({ file, instruction, register, count }) => {
      const object = objects.find((name) => name.startsWith(`${file}.`))!;
      const loops = innerLoops(disassemble(object), jumps).filter(
        (loop) =>
          loop.filter((line) => line.includes(instruction) && line.includes(register)).length === count,
      );
      expect(loops).not.toEqual([]);
      // With too few registers addresses may be read from the stack; writing to it inside the loop means that a sum was spilled.
      const written = loops.flat().filter((line) => /^\w+\s+%\w+,\s*-?(0x[0-9a-f]+)?\(%r[sb]p/.test(line));
      expect(written).toEqual([]);
    },
  );
});
