import { compared, sidesOf } from '../sides.mjs';

export const name = 'variants';
export const title =
  'Steps beside other ways of PyTorch: the whole model compiled, max-autotune, ordinary adapters, full rank in float8';
export const seconds = 0;

const whole = { compile: 'model' };
const tuned = { autotune: true };

/**
 * A whole model takes time to compile by its blocks, of which llama-60m has eight and the others 24. Choosing products by timing takes time
 * by their shapes, and gains most where few tiles fill a card.
 */
const variants = {
  'llama-60m': {
    relora: [{ kind: 'merged', ...whole }, { kind: 'merged', ...whole, ...tuned }, { kind: 'adapters' }],
    fullRank: [
      { kind: 'full', ...whole },
      { kind: 'full', pad: false },
    ],
  },
  'llama-350m': {
    relora: [{ kind: 'merged', ...tuned }, { kind: 'adapters' }],
    fullRank: [{ kind: 'float8' }, { kind: 'full', pad: false }],
  },
  'llama-1b': {
    relora: [{ kind: 'merged', ...tuned }, { kind: 'adapters' }],
    fullRank: [{ kind: 'float8' }, { kind: 'full', pad: false }],
  },
  tiny: {
    relora: [{ kind: 'merged', ...whole, ...tuned }, { kind: 'adapters' }],
    fullRank: [{ kind: 'full', pad: false }],
  },
};

export async function* run(context) {
  if (!context.peer.isThere) return yield { what: title, outcome: 'not measured', figures: 'no PyTorch' };
  const kinds = [
    { what: 'ReLoRA', key: 'relora', rank: 128 },
    { what: 'full rank', key: 'fullRank', rank: 0 },
  ];
  for (const { what, key, rank } of kinds) {
    for (const side of sidesOf(context, rank)) {
      const own = variants[side.preset][key];
      yield* compared(context, side, { precision: 'bfloat16', what, variants: own });
    }
  }
}
