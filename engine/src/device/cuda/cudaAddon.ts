import { engineFile, findNativeFile, loadNativeFile } from '../../binaries/nativeFiles.js';
import { DeviceFault } from '../deviceFaults.js';

/**
 * The addon for NVIDIA cards, typed in one place. It knows no kernel: texts, parameters and launches come from here. Addresses are
 * numbers below 2^53. What a library answers is thrown as an Error whose `code` is the library's own name for it, a wrong argument as
 * a TypeError; nothing is touched before. Calls queue and return, but for those that say otherwise.
 */
export interface CudaAddon {
  /** Opens the driver and lists the cards; throws LIBRARY_MISSING, LIBRARY_TOO_OLD or what the driver says. */
  openDriver(path: string): { version: number; devices: CardDescription[] };
  openCompiler(path: string): { major: number; minor: number; architectures: number[] };
  /** Opens cuBLASLt; its version, 130000 for 13.0. */
  openBlas(path: string): number;
  /** Waits. `image` null: it does not compile, and the log says why. */
  compile(program: CompiledProgram): { image: Uint8Array | null; log: string };

  openCard(ordinal: number): Card;
  /** What the management library says of the cards of the machine; throws LIBRARY_MISSING, LIBRARY_TOO_OLD or MANAGEMENT_FAILED. */
  readCards(path: string): CardReading[];
}

/** Null where the card does not answer. */
export interface CardReading {
  uuid: string;
  /** Share of the last moment in which a kernel ran. */
  utilization: number | null;
  memoryUsedBytes: number | null;
  memoryBytes: number | null;
  celsius: number | null;
  watts: number | null;
  /** Reasons of NVML for a clock below the wanted one. */
  throttleBits: number | null;
}

/** An open card: its memory, its kernels and its queue. */
export interface Card {
  readonly description: CardDescription;
  /** Gives everything back; nothing may be called afterwards. */
  close(): void;
  allocate(bytes: number): number;
  release(address: number): void;
  upload(to: number, from: ArrayBufferView): void;
  /** Waits for everything queued before. */
  download(to: ArrayBufferView, from: number): void;
  /** Queued; resolves when `to` holds what was there when its turn came. */
  downloadLater(to: ArrayBufferView, from: number): Promise<void>;
  fill(address: number, value: number, bytes: number): void;
  copy(to: number, from: number, bytes: number): void;

  loadModule(image: Uint8Array): number;
  loadKernel(module: number, name: string, dynamicSharedBytes: number): number;
  kernelAttributes(kernel: number): { registers: number; localBytes: number; staticSharedBytes: number };
  /** Queues a list of launches as LaunchList writes them. */
  run(commands: Uint8Array): void;
  /** Pinned memory of the host; `uploadHost` reads it when its turn comes, and `releaseHost` waits. */
  allocateHost(bytes: number): number;
  releaseHost(memory: number): void;
  uploadHost(to: number, from: number, bytes: number): void;
  downloadHost(to: number, from: number, bytes: number): void;

  /** Products by the opened cuBLASLt, with device memory of their own for sums in parts. */
  openProducts(workspaceBytes: number): void;
  /** Null where the library has no algorithm for it; a plan is never changed. */
  planProduct(shape: PlannedProduct): { plan: number; algorithm: string } | null;

  /** What is queued until `endCapture` becomes a graph instead; nothing that waits may be called meanwhile. */
  beginCapture(): void;
  endCapture(): number;
  runGraph(graph: number): void;
  releaseGraph(graph: number): void;

  synchronize(): void;
  /** Resolves when everything queued before is done, and leaves the event loop free until then. */
  wait(): Promise<void>;
  memory(): CardMemory;
}

/** As ProductShape of host/products.h: D = alpha op(A) op(B) + beta C, column by column, as cuBLASLt has it. */
export interface PlannedProduct {
  m: number;
  n: number;
  k: number;
  batch: number;
  isATransposed: number;
  isBTransposed: number;
  /** cudaDataType: 0 float32, 14 bfloat16, 28 e4m3. */
  typeAB: number;
  typeCD: number;
  leadA: number;
  leadB: number;
  leadC: number;
  leadD: number;
  /** Elements between the members of a batch. */
  strideA: number;
  strideB: number;
  strideC: number;
  strideD: number;
  alignmentA: number;
  alignmentB: number;
  alignmentC: number;
  alignmentD: number;
  isScaled: number;
}

export interface CardDescription {
  ordinal: number;
  name: string;
  uuid: string;
  /** 90 is compute capability 9.0. */
  capability: number;
  multiprocessors: number;
  sharedBytesMax: number;
  memoryBytes: number;
}

export interface CardMemory {
  freeBytes: number;
  totalBytes: number;
  /** By this process, now and at most. */
  allocatedBytes: number;
  peakBytes: number;
  allocationCount: number;
  launches: number;
}

export interface CompiledProgram {
  name: string;
  source: string;
  headerNames: string[];
  headers: string[];
  options: string[];
}

/** The folder of the addon and of the kernels' texts, from the sources as from the build. */
export const cudaFolder = engineFile('cuda/');

/** Compiled here or of a package, as RELORA_NATIVE says, or the file at `path`. */
export function loadCudaAddon(path?: string): CudaAddon {
  try {
    const built = `${cudaFolder}build/host/relora_cuda.node`;
    const file = path === undefined ? findNativeFile('relora_cuda.node', { built }) : { path, origin: path };
    return loadNativeFile(file) as CudaAddon;
  } catch (error) {
    const message =
      process.platform === 'linux'
        ? `The addon for NVIDIA cards cannot be used. ${(error as Error).message}`
        : 'NVIDIA cards are served on Linux alone: train on the processor';
    throw new DeviceFault('DEVICE_LIBRARY_MISSING', message, { cause: error });
  }
}
