import { cpus } from 'node:os';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
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
import { registerGradients } from './device/tfjs/gradients.js';
import { tensorflowDevice } from './device/tfjs/tensorflow.js';
import { TfjsDevice } from './device/tfjs/tfjsDevice.js';

export interface DeviceOptions {
  device: DeviceChoice;
  /** Native only; default: the best set of this CPU. */
  instructionSet?: InstructionSet | ModelledInstructionSet;
  /** Native only; default: all CPUs of this process. */
  threads?: number;
  precision: Precision;
}

/**
 * The device that is asked for. `auto` takes TensorFlow where tfjs-node-gpu is installed and sees a GPU, else `native`. Throws
 * when the device, the instruction set or the precision is not to be had.
 */
export async function openDevice(options: DeviceOptions): Promise<Device> {
  switch (options.device) {
    case 'native':
      return openCpu(options);
    case 'reference':
      return openTfjs('reference', 'cpu', 1, options.precision);
    case 'tensorflow': {
      const { backendName } = await tensorflowDevice('any');
      return openTfjs('tensorflow', backendName, cpus().length, options.precision);
    }
    case 'auto': {
      const gpu = await tensorflowDevice('gpuOnly').catch(() => null);
      if (gpu === null) return openCpu(options);
      return openTfjs('tensorflow', gpu.backendName, cpus().length, options.precision);
    }
  }
}

function openCpu(options: DeviceOptions): Device {
  const native = loadNativeAddon();
  const { instructionSets, threadsMax, cpuModel } = native.describe();
  const instructionSet = options.instructionSet ?? instructionSets[0] ?? 'portable';
  const threadCount = options.threads ?? threadsMax;
  const addon = native.open({ instructionSet, threads: threadCount });
  // Without an instruction for it bf16 costs more than float32 arithmetic: it halves memory, but nothing else.
  const hasBfloat16 = ['amx', 'amx-model', 'avx512bf16'].includes(instructionSet);
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

async function openTfjs(
  name: 'tensorflow' | 'reference',
  backendName: string,
  threadCount: number,
  precision: Precision,
): Promise<Device> {
  if (precision !== 'float32' && precision !== 'auto')
    throw new Error(`The device ${name} computes in float32: ask for precision float32 or auto`);
  tf.enableProdMode(); // without it tfjs-backend-cpu prints an advertisement
  registerGradients();
  if (!(await tf.setBackend(backendName)))
    throw new Error(`The backend ${backendName} of tfjs could not be started`);
  return new TfjsDevice(
    {
      name,
      model: cpus()[0]?.model ?? 'unknown',
      instructionSet: null,
      threadCount,
      precision: 'float32',
      basePrecision: 'float32',
      libraries: { 'tfjs-core': tf.version_core },
    },
    backendName,
  );
}
