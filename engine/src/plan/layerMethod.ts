import type { AdapterSettings, Initialisation, TargetModule } from './runSpec.js';

/**
 * How the layers of one module are adapted: everything in which the modes of docs/relora.md differ, except when a cycle ends. Every mode
 * ends a cycle with W += s A B, then B = 0 and A as `initialisation` says, so that the computed function does not change; after that B is
 * trained, and A too if `trainsA`.
 */
export interface LayerMethod {
  rank: number;
  /** s of y = x W + s (x A) B if it is constant; the initial value if it is trainable. */
  scale: number;
  initialisation: Initialisation;
  trainsA: boolean;
  /** Learning rate of B over that of A. */
  bLearningRateRatio: number;
}

type MethodSettings = Pick<
  AdapterSettings,
  'rank' | 'alpha' | 'moduleRanks' | 'scaling' | 'initialisation' | 'trainedFactors' | 'bLearningRateRatio'
>;

export function layerMethod(settings: MethodSettings, module: TargetModule): LayerMethod {
  const rank = rankOf(settings, module);
  return {
    rank,
    scale: settings.alpha / (settings.scaling === 'alphaOverSqrtRank' ? Math.sqrt(rank) : rank),
    initialisation: settings.initialisation,
    trainsA: settings.trainedFactors !== 'bOnly',
    bLearningRateRatio: settings.bLearningRateRatio,
  };
}

export function rankOf(
  { rank, moduleRanks }: Pick<AdapterSettings, 'rank' | 'moduleRanks'>,
  module: TargetModule,
): number {
  return moduleRanks[module] ?? rank;
}
