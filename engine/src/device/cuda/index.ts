export { loadCudaAddon, type CardDescription, type CudaAddon } from './cudaAddon.js';
export { findLibraries, packageFolders, sitesOf, type CudaLibraries } from './libraries.js';
export { kernelCompiler, type KernelCompiler } from './kernelCompiler.js';
export { Kernels } from './kernels.js';
export { readKernelFile } from './kernelText.js';
export { architectures, kernelVariants } from './kernelVariants.js';
export { readCompilerLog } from './compilerLog.js';
export { openCuda, type CudaOptions } from './openCuda.js';
