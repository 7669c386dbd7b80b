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

/** Adapter settings added later, with their earlier behavior; the type of a filtered table cannot express that all of them are included. */
export const laterAdapter = laterDefaults.adapter as Pick<AdapterSettings, Later>;
