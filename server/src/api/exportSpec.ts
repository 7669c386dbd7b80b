import {
  exportSettings,
  shardBytesDefault,
  type ExportFormat,
  type ExportSettings,
} from '@relora/engine/plan';
import type * as contract from '@relora/sdk/contract';
import { enums } from './enums.js';
import type { FieldChecks } from './fieldChecks.js';
import type { SpecReader } from './specReader.js';

/** What a run exports at its end. */
export function parseExportSpec(reader: SpecReader, spec: contract.ExportSpec | undefined): ExportSettings {
  const { checks, context } = reader;
  const settings = reader.read('spec.export', exportSettings, spec);
  const asked = (spec?.formats ?? []).map((format, index) =>
    checks.word(`spec.export.formats[${index}]`, format, enums.ExportFormat, 'huggingFace' as const),
  );
  if (new Set(asked).size < asked.length)
    checks.add('spec.export.formats', 'each layout once', spec!.formats.join(', '));
  if (asked.includes('peft') && context.spec.kind === 'fullRank')
    checks.add('spec.export.formats', 'PEFT only for jobs with adapters', 'PEFT for FULL_RANK');
  return {
    ...settings,
    formats: asked.length === 0 ? ['huggingFace'] : asked,
    ggufType: checks.word(
      'spec.export.gguf_weight_type',
      spec?.ggufWeightType,
      enums.WeightType,
      settings.weightType,
    ),
  };
}

/** The format of a requested export. */
export function parseExportRequest(
  checks: FieldChecks,
  request: contract.ExportWeightsRequest,
): { format: ExportFormat; weightType: ExportSettings['ggufType']; shardBytesMax: number } {
  const format = checks.word('format', request.format, enums.ExportFormat, 'huggingFace' as const);
  const isGguf = format === 'gguf';
  const weightType = checks.word(
    'weight_type',
    request.weightType,
    enums.WeightType,
    'float32' as const,
    isGguf ? enums.WeightType.words : exportSettings.weightType.words,
    isGguf ? '' : '; Q8_0 is for GGUF',
  );
  if (isGguf && request.shardBytesMax !== undefined)
    checks.add('shard_bytes_max', 'none for GGUF, which is one file', request.shardBytesMax);
  return {
    format,
    weightType,
    shardBytesMax: checks.integer(
      'shard_bytes_max',
      request.shardBytesMax,
      shardBytesDefault,
      1,
      Number.MAX_SAFE_INTEGER,
    ),
  };
}
