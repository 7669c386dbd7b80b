import { compared, inTurn, sidesOf } from '../sides.mjs';

export const name = 'fp8';
export const title =
  'Steps of ReLoRA with a base in FP8, to those of the merged graph in bfloat16 in PyTorch (G4)';
export const seconds = 12;

export async function* run(context) {
  // It pays off only for wide models, so the widest is first.
  for (const [side, shared] of inTurn(context, sidesOf(context, 128).reverse())) {
    yield* compared(shared, { ...side, graph: 'separate' }, { precision: 'fp8', what: 'FP8 base' });
  }
}
