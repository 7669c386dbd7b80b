import type { RunSpec } from './runSpec.js';

/**
 * Settings that came after the first release, as they were before anyone could choose. A specification stored without them
 * means these, and its hash (io/specHash.ts) leaves them out, so that its checkpoints still fit it.
 */
export const laterDefaults = {
  recomputation: 'auto',
  optimizer: { momentType: 'float32' },
  adapter: {
    graph: 'auto',
    initialisation: 'random',
    trainedFactors: 'both',
    cycleGrowth: 1,
    fullRankStepCount: 0,
    moduleRanks: {},
    scaling: 'alphaOverRank',
    bLearningRateRatio: 1,
  },
} as const;

/** Reads a specification that some version of ours stored as JSON. */
export function readStoredRunSpec(text: string): RunSpec {
  const spec = JSON.parse(text) as RunSpec;
  return {
    ...laterDefaults,
    ...spec,
    optimizer: { ...laterDefaults.optimizer, ...spec.optimizer },
    adapter: spec.adapter && { ...laterDefaults.adapter, ...spec.adapter },
  };
}
