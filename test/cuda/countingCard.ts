import { BlasProducts } from '../../engine/dist/device/cuda/blasProducts.js';
import { CudaDevice } from '../../engine/dist/device/cuda/cudaDevice.js';
import type { Card, CardDescription } from '../../engine/dist/device/cuda/cudaAddon.js';
import { Kernels } from '../../engine/dist/device/cuda/kernels.js';

/** A card that computes nothing: all values are equal, and only memory requests are real. For runs with sizes of a real card. */
export function openCountingCard(precision: 'float32' | 'bfloat16', memoryBytes = 2 ** 40) {
  const sizes = new Map<number, number>();
  const used = { bytes: 0, peakBytes: 0, allocationCount: 0 };
  let next = 256;
  const description: CardDescription = {
    ...{ ordinal: 0, name: 'A counting card', uuid: 'GPU-0', capability: 90, multiprocessors: 132 },
    ...{ sharedBytesMax: 232_448, memoryBytes },
  };
  const card: Card = {
    description,
    close: () => {},
    allocate: (bytes) => {
      const address = next;
      next += bytes + 256;
      sizes.set(address, bytes);
      used.bytes += bytes;
      used.allocationCount++;
      used.peakBytes = Math.max(used.peakBytes, used.bytes);
      return address;
    },
    release: (address) => {
      used.bytes -= sizes.get(address)!;
      sizes.delete(address);
    },
    upload: () => {},
    download: () => {},
    // Values of a model are ones, so that comparisons do not divide by zero.
    downloadLater: (to) => {
      if (to instanceof Float32Array) to.fill(1);
      return Promise.resolve();
    },
    fill: () => {},
    copy: () => {},
    loadModule: () => 0,
    loadKernel: () => 0,
    kernelAttributes: () => ({ registers: 0, localBytes: 0, staticSharedBytes: 0 }),
    run: () => {},
    allocateHost: () => (next += 256),
    releaseHost: () => {},
    uploadHost: () => {},
    downloadHost: () => {},
    openProducts: (bytes) => void card.allocate(bytes),
    planProduct: () => ({ plan: 0, algorithm: '' }),
    joinRing: () => Promise.resolve(),
    sumRing: () => Promise.resolve(),
    leaveRing: () => {},
    beginCapture: () => {},
    endCapture: () => 0,
    runGraph: () => {},
    releaseGraph: () => {},
    synchronize: () => {},
    wait: () => Promise.resolve(),
    memory: () => ({
      ...{ freeBytes: memoryBytes - used.bytes, totalBytes: memoryBytes, allocatedBytes: used.bytes },
      ...{ peakBytes: used.peakBytes, allocationCount: sizes.size, launches: 0 },
    }),
  };
  const compiler = { version: '13.0', compile: () => ({ image: new Uint8Array(), log: '' }) };
  const kernels = new Kernels(card, compiler, { architecture: 'sm_90a' });
  const device = new CudaDevice(
    {
      ...{ name: 'cuda', model: description.name, instructionSet: 'sm_90a', threadCount: 1 },
      ...{ precision, basePrecision: precision, libraries: {} },
    },
    card,
    kernels,
    precision === 'bfloat16' ? new BlasProducts(card, 130_000) : null,
  );
  return { device, used };
}
