// Source files of the native addon, for its target processor.
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { baseFlags, listFiles } from '../compileLibrary.mjs';

export const root = dirname(fileURLToPath(import.meta.url));

/** Flags of each instruction set of an architecture, by the name of its namespace. */
export function instructionSetsOf(arch, compiler) {
  // GCC moves vectors of eight bytes through MMX registers, after which the caller's x87 arithmetic gives NaN.
  const noMmx = ['-mno-mmx'];
  const avx2 = [...noMmx, '-mavx2', '-mfma', '-mf16c'];
  const avx512 = [...avx2, '-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq'];
  // GCC schedules loads of the next step before the products of this one, and then spills sums to the stack; its bfloat16 needs half
  // precision. Zig's clang accepts additions only to a processor, GCC those to an architecture.
  const isGcc = !compiler.version.includes('clang');
  const neon = ['-DRELORA_NEON', ...(isGcc ? ['-fno-schedule-insns'] : [])];
  const withFeatures = (...features) =>
    isGcc ? `-march=armv8.2-a${features.join('')}+fp16` : `-mcpu=generic${features.join('')}`;
  switch (arch) {
    case 'x64':
      return {
        portable: noMmx,
        avx2,
        avx512,
        avx512bf16: [...avx512, '-mavx512bf16'],
        avx512vnni: [...avx512, '-mavx512vnni'],
        amx: [...avx512, '-mavx512bf16', '-mamx-tile', '-mamx-bf16', '-mamx-int8'],
      };
    case 'arm64':
      return {
        portable: [],
        neon,
        neonDot: [...neon, withFeatures('+dotprod')],
        neonBf16: [...neon, withFeatures('+dotprod', '+bf16', '+i8mm')],
      };
    default:
      return { portable: [] };
  }
}

/** Instruction sets that a file is compiled for, each in its own namespace; those of avx512 and of neon also serve their extensions. */
const setsOfSource = {
  'gemm/kernel.cpp': ['portable', 'avx2', 'avx512', 'neon'],
  'gemm/kernel_avx512bf16.cpp': ['avx512bf16'],
  'gemm/kernel_int8.cpp': ['portable', 'avx2', 'avx512vnni', 'neon', 'neonDot'],
  'gemm/kernel_amx.cpp': ['portable', 'amx'],
  'gemm/kernel_matrix.cpp': ['portable', 'neonBf16'],
};
const setsOfKernels = ['portable', 'avx2', 'avx512', 'neon'];

/** The units of `compileLibrary`: every file, once for each set it is compiled for. */
export function nativeUnits({ arch, compiler, flags = [] }) {
  const sets = instructionSetsOf(arch, compiler);
  const common = [...baseFlags, ...flags];
  return listFiles(root, '.cpp').flatMap((source) => {
    const name = source.replaceAll('/', '.').replace(/\.cpp$/, '');
    const wanted = setsOfSource[source] ?? (source.startsWith('kernels/') ? setsOfKernels : undefined);
    if (wanted === undefined) return [{ source, name, flags: common }];
    return wanted
      .filter((set) => set in sets)
      .map((set) => ({
        source,
        name: `${name}.${set}`,
        flags: [...common, ...sets[set], `-DRELORA_ISA=${set}`],
      }));
  });
}
