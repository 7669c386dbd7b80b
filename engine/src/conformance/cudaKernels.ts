import type { Case } from './cases.js';

/** Kernels of the device `cuda` that a case must have run. Probes, caches and float32 runs use plain ones; the others use tiled ones. */
export function cudaKernels(
  { call, ways, isExact }: Case,
  precision: 'float32' | 'bfloat16',
  hasBlas: boolean,
): string[] {
  const isPlain = precision === 'float32' || ways.includes('float32');
  const half = ['attentionHalf', 'mlpHalf'].find((name) => call.startsWith(name));
  if (half !== undefined) {
    const attention = isPlain || ways.includes('cache') ? 'attention_float' : 'attention';
    const turning = ways.includes('not turned') ? [] : ['rotary'];
    const norms = ways.includes('head norms') ? ['head_norm_forward'] : [];
    const core =
      half === 'attentionHalf' ? [...norms, ...turning, `${attention}_forward`] : ['swiglu_forward'];
    const product = isPlain ? 'product_float' : hasBlas ? 'cublaslt' : 'product';
    const forward = ['rms_norm_forward', product, ...core];
    if (ways.includes('float32') || ways.includes('cache')) return forward;
    const back =
      half === 'attentionHalf'
        ? [
            `${attention}_backward_q`,
            `${attention}_backward_kv`,
            ...(norms.length > 0 ? ['head_norm_backward'] : []),
          ]
        : ['swiglu_backward'];
    const products = isPlain || hasBlas ? [] : ['product_right_transposed', 'product_left_transposed'];
    return [...forward, ...back, ...products, 'rms_norm_backward', 'rms_norm_gain'];
  }
  const sign = [
    ...['matrix_squares', 'inverse_norms', 'begin_sign_step', 'sign_polynomial', 'step_along'],
    precision === 'float32' ? 'squares_float' : 'product_squares',
  ];
  if (ways.includes('nothing')) return ['adamw']; // it decides on the card that there is nothing to do
  const kernels: Record<string, string[]> = {
    embedding: ['embedding_forward', 'embedding_backward'],
    rmsNorm: ['rms_norm_forward', 'rms_norm_backward', 'rms_norm_gain'],
    headCrossEntropy: [
      'cross_entropy',
      'add_losses',
      isPlain ? 'product_float' : hasBlas ? 'cublaslt' : 'product',
    ],
    headLogits: [
      isPlain || isExact === true ? 'product_float' : hasBlas ? 'cublaslt' : 'product_right_transposed',
    ],
    layerForward: ['product_float'],
    matmul: ['product_float'],
    adamW: [ways.includes('coded') ? 'coded_adamw' : 'adamw'],
    muon: [ways.includes('coded') ? 'coded_momentum' : 'momentum', ...sign],
    loraMuon: [ways.includes('coded') ? 'coded_momentum' : 'momentum', 'inverse_factor', ...sign],
    apolloMini: ['cast_shadow', 'gradient_squares', 'apollo_factor', 'apollo_step'],
    'sums in place': ['sum_squares', 'add_partials', 'add_in_place', 'scale_in_place'],
    mergeAdapter: ['merge_adapter'],
    'frozen base': ['swiglu_forward'],
    singularValues: [], // computed on the host
  };
  return kernels[call]!;
}
