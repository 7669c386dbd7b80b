import { cpus } from 'node:os';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import type { Precision } from '../../plan/runSpec.js';
import type { Device } from '../device.js';
import { DeviceFault } from '../deviceFaults.js';
import { registerGradients } from './gradients.js';
import { tensorflowDevice } from './tensorflow.js';
import { TfjsDevice } from './tfjsDevice.js';

/** A device of tfjs. Loaded when one is asked for: other runs need nothing of it. */
export async function openTfjs(name: 'tensorflow' | 'reference', precision: Precision): Promise<Device> {
  if (precision !== 'float32' && precision !== 'auto')
    throw new DeviceFault(
      'DEVICE_PRECISION_UNKNOWN',
      `The device ${name} computes in float32: ask for precision float32 or auto`,
    );
  const backendName = name === 'reference' ? 'cpu' : (await tensorflowDevice()).backendName;
  tf.enableProdMode(); // without it tfjs-backend-cpu prints an advertisement
  registerGradients();
  if (!(await tf.setBackend(backendName)))
    throw new Error(`The backend ${backendName} of tfjs could not be started`);
  return new TfjsDevice(
    {
      name,
      model: cpus()[0]?.model ?? 'unknown',
      instructionSet: null,
      threadCount: name === 'reference' ? 1 : cpus().length,
      precision: 'float32',
      basePrecision: 'float32',
      libraries: { 'tfjs-core': tf.version_core },
    },
    backendName,
  );
}
