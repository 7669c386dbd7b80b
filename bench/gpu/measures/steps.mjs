import { widthsOf } from '../peers.mjs';
import { compared, inTurn, sidesOf } from '../sides.mjs';

export const name = 'steps';
export const title =
  'Steps of ReLoRA in bfloat16 beside the merged graph in PyTorch, padded and not (G1 to G3)';
export const seconds = 60;

export async function* run(context) {
  for (const [side, shared] of inTurn(context, sidesOf(context, 128))) {
    const variants = widthsOf(side, { kind: 'merged' });
    yield* compared(shared, side, { precision: 'bfloat16', what: 'ReLoRA', variants });
  }
}
