export { findNccl } from './cardRing.js';
export { loadCudaAddon, type CardDescription, type CardReading, type CudaAddon } from './cudaAddon.js';
export {
  findDriver,
  findLibraries,
  findManagement,
  packageFolders,
  sitesOf,
  type CudaLibraries,
} from './libraries.js';
export { kernelCompiler, type KernelCompiler } from './kernelCompiler.js';
export { Kernels } from './kernels.js';
export { readKernelFile, readKernelHeaders } from './kernelText.js';
export { architectures, kernelVariants } from './kernelVariants.js';
export { readCompilerLog } from './compilerLog.js';
export { fillKernelCache, listCards, openCuda, requireCapability, type CudaOptions } from './openCuda.js';
export type { CudaDevice } from './cudaDevice.js';
