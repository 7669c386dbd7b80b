import { compared, sidesOf } from '../sides.mjs';

export const name = 'steps';
export const title = 'Steps of ReLoRA in bfloat16 beside the merged graph in PyTorch (G1 to G3)';

export async function* run(context) {
  for (const side of sidesOf(context, 128))
    yield* compared(context, side, { precision: 'bfloat16', kind: 'merged', what: 'ReLoRA bf16' });
}
