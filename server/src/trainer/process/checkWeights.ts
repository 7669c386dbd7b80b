import { checkModelFolder } from '@relora/engine';
import type { WeightsReport } from '../../weights/weights.js';
import type { CheckWeightsTask } from '../messages.js';

/** Reads a folder of weights as a run would: with `values`, every tensor, one at a time; otherwise only config and headers. */
export async function checkWeights({ folder, ...options }: CheckWeightsTask): Promise<WeightsReport> {
  return await checkModelFolder(folder, options);
}
