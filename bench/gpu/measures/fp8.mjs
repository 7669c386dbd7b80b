import { compared, sidesOf } from '../sides.mjs';

export const name = 'fp8';
export const title =
  'Steps of ReLoRA with a base in FP8, to those of the merged graph in bfloat16 in PyTorch (G4)';

export async function* run(context) {
  // It pays off only for wide models.
  for (const side of sidesOf(context, 128).reverse()) {
    const own = { ...side, graph: 'separate' };
    yield* compared(context, own, { precision: 'fp8', kind: null, what: 'ReLoRA FP8 base' });
    const [ours, theirs] = ['ReLoRA FP8 base', 'PyTorch merged'].map((what) =>
      context.found.get(`${side.preset}, ${what}`),
    );
    if (ours !== undefined && theirs !== undefined)
      yield {
        what: `${side.preset}, FP8 base to PyTorch merged`,
        outcome: 'measured',
        figures: (ours / theirs).toFixed(3),
      };
  }
}
