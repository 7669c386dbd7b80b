import { compared, inTurn, sidesOf } from '../sides.mjs';

export const name = 'fullRank';
export const title =
  'Full-rank steps beside those of PyTorch, and the speed of ReLoRA to that of full rank (G5)';
export const seconds = 40;

export async function* run(context) {
  for (const [side, shared] of inTurn(context, sidesOf(context, 0))) {
    yield* compared(shared, side, {
      precision: 'bfloat16',
      what: 'full rank',
      variants: [{ kind: 'full' }],
    });
  }
}
