import { cpus } from 'node:os';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import { arithmeticOf } from '../plan/deviceSpeed.js';
import type { DeviceChoice, Precision } from '../plan/runSpec.js';
import { registerGradients } from './gradients.js';
import {
  loadNativeAddon,
  type BasePrecision,
  type InstructionSet,
  type NativeAddon,
  type ProductPrecision,
} from './nativeAddon.js';
import { NativeBackend } from './nativeBackend.js';
import { registerNativeKernels } from './nativeKernels.js';
import { tensorflowDevice } from './tensorflowBackend.js';

/** What a run computes on. All of tfjs uses it from the moment `selectBackend` returns. */
export interface Backend {
  readonly name: 'native' | 'tensorflow' | 'reference';
  /** Of native products; null elsewhere. */
  readonly instructionSet: InstructionSet | null;
  readonly threadCount: number;
  /** Arithmetic of products, with `auto` resolved. */
  readonly precision: ProductPrecision;
  /** What frozen bases are kept in, and multiplied as. */
  readonly basePrecision: BasePrecision;
  readonly cpuModel: string;
  /** Null on other backends. */
  readonly native: NativeAddon | null;
}

export interface BackendOptions {
  device: DeviceChoice;
  /** Native only; default: the best set of this CPU. */
  instructionSet?: InstructionSet;
  /** Native only; default: all CPUs of this process. */
  threads?: number;
  precision: Precision;
}

/**
 * Chooses the tfjs backend for this process. `auto` takes TensorFlow where tfjs-node-gpu is installed and sees a GPU,
 * else `native`. Tensors made before stay usable. Throws when the device, the instruction set or the precision is not to be had.
 */
export async function selectBackend(options: BackendOptions): Promise<Backend> {
  tf.enableProdMode(); // without it tfjs-backend-cpu prints an advertisement
  registerGradients();
  switch (options.device) {
    case 'native':
      return selectNative(options);
    case 'reference':
      await useBackend('cpu');
      return otherBackend('reference', options.precision, 1);
    case 'tensorflow':
      await useBackend((await tensorflowDevice('any')).backendName);
      return otherBackend('tensorflow', options.precision, cpus().length);
    case 'auto': {
      const gpu = await tensorflowDevice('gpuOnly').catch(() => null);
      if (gpu === null) return selectNative(options);
      await useBackend(gpu.backendName);
      return otherBackend('tensorflow', options.precision, cpus().length);
    }
  }
}

async function selectNative(options: BackendOptions): Promise<Backend> {
  const addon = loadNativeAddon();
  const { instructionSets, threadsMax, cpuModel } = addon.describe();
  const instructionSet = options.instructionSet ?? instructionSets[0] ?? 'portable';
  const threadCount = options.threads ?? threadsMax;
  addon.configure({ instructionSet, threads: threadCount });
  // Without an instruction for it bf16 costs more than float32 arithmetic: it halves memory, but nothing else.
  const hasBfloat16 = instructionSet === 'amx' || instructionSet === 'avx512bf16';
  const automatic: ProductPrecision = hasBfloat16 ? 'bfloat16' : 'float32';
  if (!precisions.includes(options.precision))
    throw new Error(`The native backend has no precision ${String(options.precision)}`);
  const { precision, basePrecision } = arithmeticOf(options, { autoPrecision: automatic });

  registerNativeKernels();
  // A backend of an earlier call may have other settings. Its tensors move over when they are next used.
  if (tf.findBackend('native') !== null) tf.removeBackend('native');
  const backend = new NativeBackend(addon, precision, basePrecision);
  tf.registerBackend('native', () => backend);
  await useBackend('native');
  return {
    name: 'native',
    instructionSet,
    threadCount,
    precision,
    basePrecision,
    cpuModel,
    native: addon,
  };
}

const precisions: readonly Precision[] = ['auto', 'float32', 'bfloat16', 'int8Base', 'nf4Base'];

async function useBackend(name: string): Promise<void> {
  if (!(await tf.setBackend(name))) throw new Error(`The backend ${name} could not be started`);
}

function otherBackend(name: 'tensorflow' | 'reference', precision: Precision, threadCount: number): Backend {
  if (precision !== 'float32' && precision !== 'auto')
    throw new Error(`The backend ${name} computes in float32: ask for precision float32 or auto`);
  const cpuModel = cpus()[0]?.model ?? 'unknown';
  return {
    name,
    instructionSet: null,
    threadCount,
    precision: 'float32',
    basePrecision: 'float32',
    cpuModel,
    native: null,
  };
}
