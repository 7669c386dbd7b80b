import { compileKernels } from '../compileKernels.mjs';

export const name = 'kernels';
export const title = 'Kernels compiled for the card';
export const seconds = 20;

/** Head sizes used by later sections. */
const headDims = [8, 16, 64];

export async function* run(context) {
  yield await compileKernels(context, headDims);
}
