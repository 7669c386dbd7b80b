import type { AdapterSettings } from '../../engine/dist/plan/runSpec.js';
import { laterDefaults } from '../../engine/dist/plan/storedRunSpec.js';

type Later =
  | 'moduleRanks'
  | 'cycleGrowth'
  | 'fullRankStepCount'
  | 'graph'
  | 'initialisation'
  | 'trainedFactors'
  | 'scaling'
  | 'bLearningRateRatio'
  | 'adapterOptimizer'
  | 'fullRankOptimizer';

/** Settings of adapters that came later, as they were before; a filtered table cannot have in its type that none is left out. */
export const laterAdapter = laterDefaults.adapter as Pick<AdapterSettings, Later>;
