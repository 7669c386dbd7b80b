import { engineFile, findNativeFile, loadNativeFile } from '../../binaries/nativeFiles.js';
import { DeviceFault } from '../deviceFaults.js';

/**
 * The addon for NVIDIA cards, typed in one place. It contains no kernels: sources, parameters and launches come from TypeScript. Addresses
 * are numbers below 2^53. A library's error is thrown as an Error whose `code` is the library's own name for it, a wrong argument as a
 * TypeError before anything is touched. Calls queue work and return, unless stated otherwise.
 */
export interface CudaAddon {
  /** Opens the driver and lists the cards; throws LIBRARY_MISSING, LIBRARY_TOO_OLD or the driver's error. */
  openDriver(path: string): { version: number; devices: CardDescription[] };
  openCompiler(path: string): { major: number; minor: number; architectures: number[] };
  /** Opens cuBLASLt and returns its version, 130000 for 13.0. */
  openBlas(path: string): number;
  /** Opens NCCL and returns its version, 22703 for 2.27.3. */
  openNccl(path: string): number;
  /** An id by which the cards of all ranks join; made by one rank for all. */
  newRingId(): Uint8Array;
  /** Blocks. `image` null: compilation failed, and the log says why. */
  compile(program: CompiledProgram): { image: Uint8Array | null; log: string };

  openCard(ordinal: number): Card;
  /** Readings of all cards from the management library; throws LIBRARY_MISSING, LIBRARY_TOO_OLD or MANAGEMENT_FAILED. */
  readCards(path: string): CardReading[];
}

/** Null for values that the card does not report. */
export interface CardReading {
  uuid: string;
  /** Fraction of the last sampling period in which a kernel ran. */
  utilization: number | null;
  memoryUsedBytes: number | null;
  memoryBytes: number | null;
  celsius: number | null;
  watts: number | null;
  /** NVML's reasons for a clock below the requested one. */
  throttleBits: number | null;
}

/** An open card: its memory, its kernels and its queue. */
export interface Card {
  readonly description: CardDescription;
  /** Frees everything; no further calls are allowed. */
  close(): void;
  allocate(bytes: number): number;
  release(address: number): void;
  upload(to: number, from: ArrayBufferView): void;
  /** Waits for everything queued before it. */
  download(to: ArrayBufferView, from: number): void;
  /** Queued; resolves when `to` holds the contents as of its turn in the queue. */
  downloadLater(to: ArrayBufferView, from: number): Promise<void>;
  fill(address: number, value: number, bytes: number): void;
  copy(to: number, from: number, bytes: number): void;

  loadModule(image: Uint8Array): number;
  loadKernel(module: number, name: string, dynamicSharedBytes: number): number;
  kernelAttributes(kernel: number): { registers: number; localBytes: number; staticSharedBytes: number };
  /** Queues a list of launches in the format of LaunchList. */
  run(commands: Uint8Array): void;
  /** Pinned host memory; `uploadHost` reads it when its turn in the queue comes, and `releaseHost` waits. */
  allocateHost(bytes: number): number;
  releaseHost(memory: number): void;
  uploadHost(to: number, from: number, bytes: number): void;
  downloadHost(to: number, from: number, bytes: number): void;

  /** Enables products by the opened cuBLASLt, with a device workspace for split sums. */
  openProducts(workspaceBytes: number): void;
  /** Null if the library has no algorithm for it; a plan never changes. */
  planProduct(shape: PlannedProduct): { plan: number; algorithm: string } | null;

  /** Connects the card with those of the other ranks by NCCL; resolves when all have joined. A card joins one ring. */
  joinRing(id: Uint8Array, rank: number, size: number): Promise<void>;
  /**
   * Replaces `count` float32 values by their sum over all ranks; resolves when it is done. Nothing else may be queued meanwhile. Rejects
   * with NCCL_ and its number where another rank is lost.
   */
  sumRing(address: number, count: number): Promise<void>;
  /** A pending sum rejects, and none is allowed afterwards. Also allowed after `close`. */
  leaveRing(): void;

  /** Work queued until `endCapture` becomes a graph instead of running; calls that wait are not allowed meanwhile. */
  beginCapture(): void;
  endCapture(): number;
  runGraph(graph: number): void;
  releaseGraph(graph: number): void;

  synchronize(): void;
  /** Resolves when everything queued before is done, without blocking the event loop. */
  wait(): Promise<void>;
  memory(): CardMemory;
}

/** ProductShape of host/products.h: D = alpha op(A) op(B) + beta C in column-major order, as cuBLASLt defines it. */
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
  /** Allocated by this process: now, and at the peak. */
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

/** The folder of the addon and of the kernel sources, for both the source tree and the build. */
export const cudaFolder = engineFile('cuda/');

/** Loads the addon compiled here or the one from a package, as RELORA_NATIVE says, or the file at `path`. */
export function loadCudaAddon(path?: string): CudaAddon {
  try {
    const built = `${cudaFolder}build/host/relora_cuda.node`;
    const file = path === undefined ? findNativeFile('relora_cuda.node', { built }) : { path, origin: path };
    return loadNativeFile(file) as CudaAddon;
  } catch (error) {
    const message =
      process.platform === 'linux'
        ? `The addon for NVIDIA cards cannot be used. ${(error as Error).message}`
        : 'NVIDIA cards are supported only on Linux: train on the processor';
    throw new DeviceFault('DEVICE_LIBRARY_MISSING', message, { cause: error });
  }
}
