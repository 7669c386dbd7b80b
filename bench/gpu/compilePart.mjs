// Compiles some kernels into the cache: `node compilePart.mjs JSON`, see compileKernels.mjs.
import { kernelCompiler, loadCudaAddon, readKernelFile } from '../../engine/dist/device/cuda/index.js';

const { options, architecture, nvrtc, variants } = JSON.parse(process.argv[2]);
const addon = loadCudaAddon();
for (const library of options.libraries.compilers) {
  let compiler;
  try {
    compiler = kernelCompiler(addon, library, options.cache);
  } catch {
    continue; // missing; another one may exist
  }
  if (compiler.version !== nvrtc) continue;
  for (const { file, definitions } of variants)
    compiler.compile(readKernelFile(file), { architecture, definitions, moreOptions: options.moreOptions });
  process.exit(0);
}
throw new Error(`No compiler of CUDA ${nvrtc} was found again`);
