// Compiles the native addon. Run directly, or by `npm run build`; `build.mjs address` and `build.mjs thread` make an instrumented one.
import { join } from 'node:path';
import { compileLibrary, findCompiler, sanitizerFlags } from '../compileLibrary.mjs';
import { instructionSetsOf, nativeUnits, root } from './units.mjs';

const { arch } = process;
const sanitizer = process.argv[2];
const instrumentation = sanitizerFlags(sanitizer);
const compiler = findCompiler();
await compileLibrary({
  root,
  target: join(root, 'build', sanitizer ?? '', 'relora.node'),
  compiler,
  units: nativeUnits({ arch, compiler, flags: instrumentation }),
  linkFlags: instrumentation,
  what: 'The native addon',
  note: `, ${Object.keys(instructionSetsOf(arch, compiler)).join(', ')}`,
});
