import { compared, sidesOf } from '../sides.mjs';

export const name = 'adapters';
export const title = 'Steps of ReLoRA beside ordinary adapters in PyTorch';

export async function* run(context) {
  for (const side of sidesOf(context, 128))
    yield* compared(context, side, { precision: 'bfloat16', kind: 'adapters', what: 'ReLoRA bf16 again' });
}
