// Compiles the native addon. Run directly, or by `npm run build`; `build.mjs address` and `build.mjs thread` make one that
// watches itself.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { baseFlags, compileLibrary, findCompiler, listFiles, sanitizerFlags } from '../compileLibrary.mjs';

const root = dirname(fileURLToPath(import.meta.url));
const sanitizer = process.argv[2];
const instrumentation = sanitizerFlags(sanitizer);
const flags = [...baseFlags, ...instrumentation];

// GCC moves vectors of eight bytes through MMX registers, after which the x87 arithmetic of whoever called gives NaN.
const noMmx = process.arch === 'x64' ? ['-mno-mmx'] : [];
const avx2 = [...noMmx, '-mavx2', '-mfma', '-mf16c'];
const avx512 = [...avx2, '-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq'];
const compiler = findCompiler();
// GCC orders loads of the next step before the products of this one, and sums then go to the stack.
const neon = ['-DRELORA_NEON', ...(compiler.version.includes('clang') ? [] : ['-fno-schedule-insns'])];
const instructionSets = {
  portable: noMmx,
  ...(process.arch === 'arm64' && {
    neon: [...neon, '-march=armv8-a'],
    neonDot: [...neon, '-march=armv8.2-a+dotprod'],
    neonBf16: [...neon, '-march=armv8.2-a+dotprod+fp16+bf16+i8mm'],
  }),
  ...(process.arch === 'x64' && {
    avx2,
    avx512,
    avx512bf16: [...avx512, '-mavx512bf16'],
    avx512vnni: [...avx512, '-mavx512vnni'],
    amx: [...avx512, '-mavx512bf16', '-mamx-tile', '-mamx-bf16', '-mamx-int8'],
  }),
};

/** Files compiled once for each of some sets in its own namespace; those of avx512 serve its extensions too. */
const setsOf = (source) => {
  const sets = {
    'gemm/kernel.cpp': ['portable', 'avx2', 'avx512', 'neon'],
    'gemm/kernel_avx512bf16.cpp': ['avx512bf16'],
    'gemm/kernel_int8.cpp': ['portable', 'avx2', 'avx512vnni', 'neon', 'neonDot'],
    'gemm/kernel_amx.cpp': ['portable', 'amx'],
    'gemm/kernel_matrix.cpp': ['portable', 'neonBf16'],
  }[source];
  if (sets === undefined && !source.startsWith('kernels/')) return [undefined];
  return (sets ?? ['portable', 'avx2', 'avx512', 'neon']).filter((set) => set in instructionSets);
};

const units = listFiles(root, '.cpp').flatMap((source) =>
  setsOf(source).map((set) => ({
    source,
    name: `${source.replaceAll('/', '.').replace(/\.cpp$/, '')}${set === undefined ? '' : `.${set}`}`,
    flags: set === undefined ? flags : [...flags, ...instructionSets[set], `-DRELORA_ISA=${set}`],
  })),
);
await compileLibrary({
  root,
  target: join(root, 'build', sanitizer ?? '', 'relora.node'),
  compiler,
  units,
  linkFlags: instrumentation,
  what: 'The native addon',
  note: `, ${Object.keys(instructionSets).join(', ')}`,
});
