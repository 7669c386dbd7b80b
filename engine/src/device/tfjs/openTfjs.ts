import { availableParallelism, cpus } from 'node:os';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import type { Precision } from '../../plan/runSpec.js';
import type { Device } from '../device.js';
import { DeviceFault } from '../deviceFaults.js';
import { registerGradients } from './gradients.js';
import { loadTensorflow } from './tensorflow.js';
import { TfjsDevice } from './tfjsDevice.js';

/** A device of tfjs. Imported on demand: other runs do not need it. */
export async function openTfjs(name: 'tensorflow' | 'reference', precision: Precision): Promise<Device> {
  if (precision !== 'float32' && precision !== 'auto')
    throw new DeviceFault(
      'DEVICE_PRECISION_UNKNOWN',
      `The device ${name} computes in float32: ask for precision float32 or auto`,
    );
  const tensorflow = name === 'reference' ? null : await loadTensorflow();
  const backendName = tensorflow?.backendName ?? 'cpu';
  tf.enableProdMode(); // without it tfjs-backend-cpu prints an advertisement
  registerGradients();
  if (!(await tf.setBackend(backendName)))
    throw new Error(`The backend ${backendName} of tfjs could not be started`);
  const usesCard = tensorflow?.usesCard === true;
  return new TfjsDevice(
    {
      name,
      // TensorFlow says that it found a card, but not which.
      model: usesCard ? 'a card that TensorFlow found' : (cpus()[0]?.model ?? 'unknown'),
      instructionSet: null,
      threadCount: name === 'reference' || usesCard ? 1 : availableParallelism(),
      precision: 'float32',
      basePrecision: 'float32',
      ...(usesCard && { isOnUnknownCard: true }),
      libraries: { 'tfjs-core': tf.version_core, ...tensorflow?.versions },
    },
    backendName,
  );
}
