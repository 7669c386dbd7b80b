import { compared, sidesOf } from '../sides.mjs';

export const name = 'fullRank';
export const title =
  'Full-rank steps beside those of PyTorch, and what share of them a step of ReLoRA takes (G5)';

export async function* run(context) {
  for (const side of sidesOf(context, 0)) {
    yield* compared(context, side, { precision: 'bfloat16', kind: 'full', what: 'full rank bf16' });
    const [adapted, full] = ['ReLoRA', 'full rank'].map((what) =>
      context.found.get(`${side.preset}, ${what} bf16`),
    );
    if (adapted !== undefined && full !== undefined)
      yield {
        what: `${side.preset}, ReLoRA to own full rank`,
        outcome: 'measured',
        figures: (adapted / full).toFixed(3),
      };
  }
}
