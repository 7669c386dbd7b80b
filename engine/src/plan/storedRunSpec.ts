import {
  adapterSettings,
  batchSettings,
  checkpointSettings,
  evaluationSettings,
  modelSettings,
  optimizerSettings,
  runSettings,
  exportSettings as exportTable,
  sampleSettings,
  shardBytesDefault,
  stopSettings,
  streamSettings,
  warmStartSettings,
} from './jobSettings.js';
import type { ExportSettings, RunSpec, StepRange } from './runSpec.js';
import { valuesBefore } from './setting.js';

/**
 * Settings added after the first release, with the values that applied before. A specification stored without them stands for these values,
 * and its hash (plan/specHash.ts) leaves them out, so that its checkpoints still match.
 */
export const laterDefaults = {
  ...valuesBefore(runSettings),
  baseWeightsName: null,
  baseWeightsHash: 'path' as const,
  omittedSteps: [],
  omittedDocuments: [],
  acceptedDevices: [],
  mixture: [],
  evaluations: [],
  streams: valuesBefore(streamSettings),
  recipe: 'paper',
  warmStart: valuesBefore(warmStartSettings),
  optimizer: valuesBefore(optimizerSettings),
  adapter: { ...valuesBefore(adapterSettings), moduleRanks: {} },
  model: { ...valuesBefore(modelSettings), ropeScaling: null },
  batch: valuesBefore(batchSettings),
  evaluation: valuesBefore(evaluationSettings),
  checkpoint: valuesBefore(checkpointSettings),
  stop: valuesBefore(stopSettings) as RunSpec['stop'],
  sample: valuesBefore(sampleSettings),
};

/** With a field name of 0.1.0. */
type StoredRunSpec = RunSpec & { skippedSteps?: StepRange[] };

/** Reads a specification that this or an earlier version stored as JSON. */
export function readStoredRunSpec(text: string): RunSpec {
  const { skippedSteps, ...spec } = JSON.parse(text) as StoredRunSpec;
  return {
    ...laterDefaults,
    ...(skippedSteps && { omittedSteps: skippedSteps }),
    ...spec,
    streams: { ...laterDefaults.streams, ...spec.streams },
    model: { ...laterDefaults.model, ...spec.model },
    warmStart: { ...laterDefaults.warmStart, ...spec.warmStart },
    optimizer: { ...laterDefaults.optimizer, ...spec.optimizer },
    batch: { ...laterDefaults.batch, ...spec.batch },
    evaluation: { ...laterDefaults.evaluation, ...spec.evaluation },
    checkpoint: { ...laterDefaults.checkpoint, ...spec.checkpoint },
    stop: { ...laterDefaults.stop, ...spec.stop },
    sample: { ...laterDefaults.sample, ...spec.sample },
    adapter: spec.adapter && { ...laterDefaults.adapter, ...spec.adapter },
    export: exportSettings(spec.export),
  };
}

function exportSettings(
  stored: Pick<ExportSettings, 'weightType'> & Partial<ExportSettings>,
): ExportSettings {
  return {
    formats: ['huggingFace'],
    ...(valuesBefore(exportTable) as Pick<ExportSettings, 'weights'>),
    shardBytesMax: shardBytesDefault,
    ggufType: stored.weightType,
    ...stored,
  };
}
