import { shardBytesDefault, type ExportSettings, type RunSpec, type StepRange } from './runSpec.js';

/** What of a specification may be missing in a stored one. */
type LaterDefaults = Partial<Omit<RunSpec, 'model' | 'optimizer' | 'adapter'>> & {
  model: Partial<RunSpec['model']>;
  optimizer: Partial<RunSpec['optimizer']>;
  adapter: Partial<NonNullable<RunSpec['adapter']>>;
};

/**
 * Settings that came after the first release, as they were before anyone could choose. A specification stored without them
 * means these, and its hash (plan/specHash.ts) leaves them out, so that its checkpoints still fit it.
 */
export const laterDefaults = {
  baseWeightsName: null,
  recomputation: 'auto',
  omittedSteps: [],
  recipe: 'paper',
  endOfData: 'repeat',
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
  model: { ropeScaling: null, attentionBias: false },
} satisfies LaterDefaults;

/** With the name that a field had in 0.1.0. */
type StoredRunSpec = RunSpec & { skippedSteps?: StepRange[] };

/** Reads a specification that some version of ours stored as JSON. */
export function readStoredRunSpec(text: string): RunSpec {
  const { skippedSteps, ...spec } = JSON.parse(text) as StoredRunSpec;
  return {
    ...laterDefaults,
    ...(skippedSteps && { omittedSteps: skippedSteps }),
    ...spec,
    model: { ...laterDefaults.model, ...spec.model },
    optimizer: { ...laterDefaults.optimizer, ...spec.optimizer },
    adapter: spec.adapter && { ...laterDefaults.adapter, ...spec.adapter },
    export: exportSettings(spec.export),
  };
}

function exportSettings(
  stored: Pick<ExportSettings, 'weightType'> & Partial<ExportSettings>,
): ExportSettings {
  return {
    formats: ['huggingFace'],
    shardBytesMax: shardBytesDefault,
    ggufType: stored.weightType,
    ...stored,
  };
}
