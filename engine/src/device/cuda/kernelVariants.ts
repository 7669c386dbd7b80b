import { listKernelFiles } from './kernelText.js';

/** One module: a source, and the definitions that it is compiled with. */
export interface KernelVariant {
  readonly file: string;
  readonly definitions: readonly string[];
}

/** Architectures for which kernels can be compiled without a card: Ampere, Ada, Hopper, both Blackwells. */
export const architectures = ['sm_80', 'sm_86', 'sm_89', 'sm_90a', 'sm_100a', 'sm_120'] as const;

const headDims = [8, 16, 32, 48, 64, 80, 96, 128];
const ofOneType = ['adamw', 'apollo', 'attention_float', 'muon', 'product', 'product_e4m3', 'product_float'];

/** All modules that a run may load, for the table of registers and for filling the cache. */
export function kernelVariants(): KernelVariant[] {
  return listKernelFiles().flatMap((file) => {
    if (file === 'attention') return headDims.map((dim) => ({ file, definitions: [`HEAD_DIM=${dim}`] }));
    if (ofOneType.includes(file)) return [{ file, definitions: [] }];
    if (file === 'rms_norm')
      return ['bf16', 'float'].flatMap((type) =>
        ['bf16', 'float'].map((input) => ({
          file,
          definitions: [`INPUT=${input}`, `ACTIVATION=${type}`],
        })),
      );
    return ['bf16', 'float'].map((type) => ({ file, definitions: [`ACTIVATION=${type}`] }));
  });
}
