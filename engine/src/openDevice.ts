import { devicePrecisions, servesPrecision } from './plan/devicePrecisions.js';
import { arithmeticOf } from './plan/deviceSpeed.js';
import type { DeviceChoice, Precision } from './plan/runSpec.js';
import { CpuDevice } from './device/cpu/cpuDevice.js';
import {
  loadNativeAddon,
  type InstructionSet,
  type ModelledInstructionSet,
  type ProductPrecision,
} from './device/cpu/nativeAddon.js';
import type { Device } from './device/device.js';
import { DeviceFault } from './device/deviceFaults.js';

export interface DeviceOptions {
  device: DeviceChoice;
  /** Native only; default: the best instruction set of this CPU. */
  instructionSet?: InstructionSet | ModelledInstructionSet;
  /** Native only; default: all CPUs of this process. */
  threads?: number;
  precision: Precision;
  /** For `cuda` only; default: the first card, libraries from the usual places, no cache. */
  card?: CardOptions;
}

export interface CardOptions {
  /** UUID as the driver reports it; null: the first card. */
  uuid: string | null;
  /** Folder with NVIDIA's libraries; null: search the usual places. */
  libraryFolder: string | null;
  /** Cache of compiled kernels; null: no cache. */
  cache: { readonly folder: string; readonly isWritable: boolean } | null;
}

/**
 * Opens the requested device. `auto` takes a card if one supports the precision, else `native`. Throws if the device, the instruction set
 * or the precision is not available.
 */
export async function openDevice(options: DeviceOptions): Promise<Device> {
  switch (options.device) {
    case 'native':
      return openCpu(options);
    case 'cuda':
      return await openCard(options);
    case 'reference':
    case 'tensorflow': {
      const { openTfjs } = await import('./device/tfjs/openTfjs.js');
      return await openTfjs(options.device, options.precision);
    }
    case 'auto':
      try {
        return await openCard(options);
      } catch (error) {
        if (!(error instanceof DeviceFault)) throw error;
        return openCpu(options);
      }
  }
}

const bfloat16Sets = ['amx', 'amx-model', 'avx512bf16', 'neonBf16', 'neonBf16-model'];

function openCpu(options: DeviceOptions): Device {
  const native = loadNativeAddon();
  const { instructionSets, threadsMax, cpuModel } = native.describe();
  const instructionSet = options.instructionSet ?? instructionSets[0] ?? 'portable';
  const threadCount = options.threads ?? threadsMax;
  const addon = native.open({ instructionSet, threads: threadCount });
  // Without fast bf16 instructions, bf16 takes about as long as float32: it saves memory, but rounds.
  const hasBfloat16 = bfloat16Sets.includes(instructionSet);
  const automatic: ProductPrecision = hasBfloat16 ? 'bfloat16' : 'float32';
  if (!precisions.includes(options.precision))
    throw new Error(`The device native has no precision ${String(options.precision)}`);
  const { precision, basePrecision } = arithmeticOf(options, { autoPrecision: automatic });
  return new CpuDevice(
    { name: 'native', model: cpuModel, instructionSet, threadCount, precision, basePrecision, libraries: {} },
    addon,
  );
}

const precisions: readonly Precision[] = ['auto', 'float32', 'bfloat16', 'int8Base', 'nf4Base'];

async function openCard({ precision, card }: DeviceOptions): Promise<Device> {
  if (!servesPrecision('cuda', precision))
    throw new DeviceFault(
      'DEVICE_PRECISION_UNKNOWN',
      `The device cuda has no precision ${precision}: ask for auto, ${devicePrecisions.cuda.join(' or ')}`,
    );
  // Imported on demand: a machine without a card needs nothing of CUDA.
  const { findDriver, findLibraries, listCards, openCuda } = await import('./device/cuda/index.js');
  const { uuid = null, libraryFolder: folder = null, cache = null } = card ?? {};
  listCards(findDriver(folder)); // before the search for a compiler, which may run Python
  return openCuda({
    ...{ libraries: findLibraries({ folder }), uuid, cache },
    precision: precision === 'float32' ? 'float32' : 'bfloat16',
    ...(precision === 'fp8Base' && { basePrecision: 'fp8' as const }),
  });
}
