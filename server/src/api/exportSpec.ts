import { shardBytesDefault, type ExportFormat, type ExportSettings, type RunSpec } from '@relora/engine/plan';
import * as contract from '@relora/sdk/contract';
import { exportFormats, ggufTypes, weightTypes } from './enums.js';
import type { FieldChecks } from './fieldChecks.js';

const formatWords = 'HUGGING_FACE, PEFT or GGUF';
const typeWords = 'FLOAT32, FLOAT16 or BFLOAT16';
/** As many bytes as a double counts exactly. */
const shardBytesLimit = Number.MAX_SAFE_INTEGER;

/** What a run exports at its end. */
export function parseExportSpec(
  checks: FieldChecks,
  kind: RunSpec['kind'],
  spec: contract.ExportSpec | undefined,
): ExportSettings {
  const weightType =
    checks.choice(
      'spec.export.weight_type',
      spec?.weightType ?? contract.WeightType.FLOAT32,
      weightTypes,
      typeWords,
    ) ?? 'float32';
  const formats = (spec?.formats ?? []).map(
    (format, index) =>
      checks.choice(`spec.export.formats[${index}]`, format, exportFormats, formatWords) ?? 'huggingFace',
  );
  if (new Set(formats).size < formats.length)
    checks.add('spec.export.formats', 'each layout once', spec!.formats.join(', '));
  if (formats.includes('peft') && kind === 'fullRank')
    checks.add('spec.export.formats', 'PEFT for jobs with adapters alone', 'PEFT for FULL_RANK');
  const ggufType = spec?.ggufWeightType ?? contract.WeightType.UNSPECIFIED;
  const shardBytesMax = parseShardBytes(checks, 'spec.export.shard_bytes_max', spec?.shardBytesMax);
  return {
    weightType,
    formats: formats.length === 0 ? ['huggingFace'] : formats,
    shardBytesMax,
    ggufType:
      ggufType === contract.WeightType.UNSPECIFIED
        ? weightType
        : (checks.choice('spec.export.gguf_weight_type', ggufType, ggufTypes, `${typeWords}, or Q8_0`) ??
          weightType),
  };
}

/** What an export on request is made as. */
export function parseExportRequest(
  checks: FieldChecks,
  request: contract.ExportWeightsRequest,
): { format: ExportFormat; weightType: ExportSettings['ggufType']; shardBytesMax: number } {
  const format = checks.choice('format', request.format, exportFormats, formatWords) ?? 'huggingFace';
  const isGguf = format === 'gguf';
  const weightType =
    checks.choice(
      'weight_type',
      request.weightType,
      isGguf ? ggufTypes : weightTypes,
      isGguf ? `${typeWords}, or Q8_0` : `${typeWords}; Q8_0 is for GGUF`,
    ) ?? 'float32';
  if (isGguf && request.shardBytesMax !== undefined)
    checks.add('shard_bytes_max', 'none for GGUF, which is one file', request.shardBytesMax);
  return {
    format,
    weightType,
    shardBytesMax: parseShardBytes(checks, 'shard_bytes_max', request.shardBytesMax),
  };
}

function parseShardBytes(checks: FieldChecks, field: string, value: number | undefined): number {
  return checks.integer(field, value, shardBytesDefault, 1, shardBytesLimit);
}
