import { loadNativeAddon } from '../../../engine/dist/device/cpu/nativeAddon.js';
import { openCuda } from '../../../engine/dist/device/cuda/openCuda.js';
import type { Device } from '../../../engine/dist/device/device.js';
import { isTensorflowSetUp } from '../../../engine/dist/device/tfjs/tensorflow.js';
import { openDevice } from '../../../engine/dist/openDevice.js';
import { modelOptions } from '../../cuda/modelPaths.js';
import { cudaKernels, type Case } from '@relora/engine/conformance';

/** A column of the table: a device in one precision. */
export interface Column {
  /** As in the table in docs/devices.md. */
  name: string;
  open(): Promise<Device>;
  /** Largest difference from the definitions, relative to the largest value. */
  tolerance: number;
  /** Calls that the device refuses. */
  refuses?: readonly string[];
  /** Not available here: its tests are skipped, and the table keeps its entries. */
  isMissing?: boolean;
  /** Kernels that a case must have run, by their names in `kernelCounts`. */
  kernels(one: Case): string[];
}

const plainLibraries = { ...modelOptions.libraries, products: [] };

const best = loadNativeAddon().describe().instructionSets[0]!;

export const columns: Column[] = [
  {
    name: 'native, float32',
    open: () => openDevice({ device: 'native', precision: 'float32', threads: 2 }),
    // Sums of at most 300 products in different orders: far below sqrt(300) * 300 * 2^-24.
    tolerance: 2e-5,
    kernels: nativeKernels,
  },
  {
    name: 'native, float32, portable',
    open: () =>
      openDevice({ device: 'native', precision: 'float32', instructionSet: 'portable', threads: 1 }),
    tolerance: 2e-5,
    kernels: nativeKernels,
  },
  {
    name: 'native, bfloat16',
    open: () => openDevice({ device: 'native', precision: 'bfloat16', instructionSet: best, threads: 2 }),
    // Each operand keeps 8 significant bits; intermediates such as p = dy Bᵀ are rounded again.
    tolerance: 0.03,
    kernels: nativeKernels,
  },
  {
    name: 'cuda on its model, float32',
    open: () => Promise.resolve(openCuda({ ...modelOptions, precision: 'float32' })),
    tolerance: 2e-5,
    kernels: (one) => cudaKernels(one, 'float32', false),
  },
  {
    name: 'cuda on its model, bfloat16',
    open: () => Promise.resolve(openCuda({ ...modelOptions, precision: 'bfloat16' })),
    tolerance: 0.03,
    kernels: (one) => cudaKernels(one, 'bfloat16', true),
  },
  {
    name: 'cuda on its model, bfloat16, without cuBLASLt',
    open: () =>
      Promise.resolve(openCuda({ ...modelOptions, libraries: plainLibraries, precision: 'bfloat16' })),
    tolerance: 0.03,
    kernels: (one) => cudaKernels(one, 'bfloat16', false),
  },
  {
    name: 'reference',
    open: () => openDevice({ device: 'reference', precision: 'float32' }),
    tolerance: 1e-30,
    kernels: referenceKernels,
  },
  {
    // The same definitions, on kernels that are independent of ours: `npm run setup:tensorflow`.
    name: 'tensorflow',
    open: () => openDevice({ device: 'tensorflow', precision: 'float32' }),
    tolerance: 5e-5, // sums are split among its threads
    isMissing: !isTensorflowSetUp(),
    kernels: referenceKernels,
  },
];

const halfNames = { attentionHalf: 'attentionHalf', mlpHalf: 'mlpHalf' } as const;

/** Kernel names are those of the addon's functions. */
function nativeKernels({ call, ways }: Case): string[] {
  const half = Object.keys(halfNames).find((name) => call.startsWith(name));
  if (half !== undefined) {
    const packed = ways.includes('packMerged') ? ['packMerged'] : [];
    if (!ways.includes('float32') && !ways.includes('cache')) {
      const masks = ways.includes('dropoutMask') ? ['dropoutMask'] : [];
      return [`${half}Forward`, `${half}Backward`, ...packed, ...masks];
    }
    const turning = ways.includes('not turned') ? [] : ['rotary'];
    const core = half === 'attentionHalf' ? [...turning, 'attentionForward'] : ['swigluForward'];
    const layer = ways.includes('float32') ? 'matmul' : 'linearForward';
    return ['rmsNormForward', ...core, layer];
  }
  if (ways.includes('nothing')) return [];
  const kernels: Record<string, string[]> = {
    embedding: ['embeddingForward', 'embeddingBackward'],
    rmsNorm: ['rmsNormForward', 'rmsNormBackward'],
    headCrossEntropy: ['headCrossEntropy'],
    headLogits: ['matmul'],
    layerForward: ['matmul'],
    matmul: ['matmul'],
    adamW: [ways.includes('coded') ? 'codedAdamWInPlace' : 'adamWInPlace'],
    muon: ['muonInPlace'],
    loraMuon: ['loraMuonInPlace'],
    apolloMini: ['apolloMiniInPlace'],
    'sums in place': ['sumSquares', 'addInPlace'],
    mergeAdapter: ['mergeAdapter'],
    'frozen base': ['packBase', 'repackBase', 'mlpHalfForward'],
    singularValues: ['singularValues'],
  };
  return kernels[call]!;
}

/** The definitions are counted by the names of the calls. */
function referenceKernels({ call, ways }: Case): string[] {
  const half = Object.keys(halfNames).find((name) => call.startsWith(name));
  if (half !== undefined) {
    const isForward = ways.includes('float32') || ways.includes('cache');
    return isForward ? [`${half}Forward`] : [`${half}Forward`, `${half}Backward`];
  }
  if (ways.includes('nothing')) return [];
  const kernels: Record<string, string[]> = {
    embedding: ['embeddingForward', 'embeddingBackward'],
    rmsNorm: ['rmsNormForward', 'rmsNormBackward'],
    'sums in place': ['sumSquares', 'addInPlace', 'scaleInPlace'],
    'frozen base': ['mlpHalfForward'],
    singularValues: [], // computed on the host, without tensors
  };
  return kernels[call] ?? [call];
}
