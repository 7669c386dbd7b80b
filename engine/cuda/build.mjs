// Compiles the addon for NVIDIA cards, which opens their libraries at run time and does not need them to build; and, with `build.mjs model
// [address]`, the model of a card that replaces those libraries in tests.
import { join } from 'node:path';
import { compileLibrary, fail, findCompiler, sanitizerFlags } from '../compileLibrary.mjs';
import { cudaUnits, root } from './units.mjs';

const [part = 'host', sanitizer] = process.argv.slice(2);
if (part !== 'host' && part !== 'model') fail(`Expected host or model, got ${part}`);
if (process.platform !== 'linux') process.exit(0); // NVIDIA's libraries for training exist only on Linux

const instrumentation = sanitizerFlags(sanitizer);
const compiler = findCompiler();
const modelFlags = [
  `-DRELORA_MODEL_COMPILER="${[compiler.command, ...compiler.args].join(' ')}"`,
  `-DRELORA_MODEL_FOLDER="${join(root, 'model')}"`,
  // For kernels, whose memory is host memory here. Other sanitizers' runtimes would be only in the model.
  `-DRELORA_MODEL_FLAGS="${sanitizer === 'address' ? '-fsanitize=address' : ''}"`,
];
await compileLibrary({
  root,
  target: join(
    root,
    'build',
    part,
    sanitizer ?? '',
    part === 'host' ? 'relora_cuda.node' : 'cuda_model.node',
  ),
  compiler,
  units: cudaUnits(part, [...instrumentation, ...(part === 'model' ? modelFlags : [])]),
  linkFlags: instrumentation,
  what: part === 'host' ? 'The addon for NVIDIA cards' : 'The model of a card',
});
