import type { Dataset } from '../data/dataset.js';
import type { Device } from '../device/device.js';
import type { TokenRows } from '../model/llama.js';
import type { ExportDifference } from '../plan/exportDifference.js';
import type { ExportFormat, GgufType, LlamaConfig } from '../plan/runSpec.js';
import { ExportDiffers } from './exportDiffers.js';
import { withExportedWeights, type WeightReader } from './exportedWeights.js';
import { LogitComparison } from './logitComparison.js';
import { streamedLogits, type LogitPart } from './streamedLogits.js';
import { Random } from '../random.js';
import type { WeightSource } from './weightSource.js';

export interface ExportCheck {
  /** Most tokens to compare; 0: no check. */
  tokenCount: number;
  sequenceLength: number;
  /** Largest accepted `logitDifferenceRatio` by type of weights. */
  ratioMax: Readonly<Record<GgufType, number>>;
}

/** Most logits of the run in memory at a time; with a large vocabulary fewer tokens are compared. */
const logitsMax = 2 ** 24;

/**
 * Reads an export back and computes with it, one block of weights in memory at a time. Throws ExportDiffers with the figures if it differs
 * from the original model; null if no check is wanted.
 */
export async function measureExport(
  device: Device,
  source: WeightSource,
  folder: string,
  { format, weightType }: { format: ExportFormat; weightType: GgufType },
  dataset: Dataset | null,
  check: ExportCheck,
): Promise<ExportDifference | null> {
  const { config } = source;
  const sample = sampleOf(config, dataset, check);
  if (sample === null) return null;
  const { rows, heldOut } = sample;
  const wanted: LogitPart[] = [];
  const ofRun: WeightReader = async ({ name, role }) =>
    role === 'base' ? await source.merged(name) : await source.weight(name);
  for await (const part of streamedLogits(device, config, ofRun, rows)) wanted.push(part);
  const comparison = new LogitComparison(rows.targets, config.vocabSize);
  await withExportedWeights(device, folder, { format, weightType }, config, async (read) => {
    for await (const part of streamedLogits(device, config, read, rows))
      comparison.add(wanted.shift()!, part);
  });
  const difference = {
    ...comparison.result(),
    heldOut,
    logitDifferenceRatioMax: check.ratioMax[weightType],
  };
  const { logitDifferenceRatio, logitDifferenceRatioMax, logitDifferenceMax, loss, exportedLoss } =
    difference;
  if (logitDifferenceRatio <= logitDifferenceRatioMax) return difference;
  throw new ExportDiffers(
    `${format} in ${weightType} as it was read back`,
    `logits that differ by at most ${logitDifferenceRatioMax} of their spread from those of the run`,
    `${shown(logitDifferenceRatio)}, at most ${shown(logitDifferenceMax)} in one logit; loss ${shown(exportedLoss)} for ${shown(loss)} on ${difference.tokenCount} tokens`,
  );
}

const shown = (value: number): string => String(Number(value.toPrecision(4)));

/** The first tokens of the held-out part, or of the training part if nothing is held out; random tokens if the data set was deleted. */
function sampleOf(
  { vocabSize, maxPositionEmbeddings }: LlamaConfig,
  dataset: Dataset | null,
  check: ExportCheck,
): { rows: TokenRows; heldOut: boolean } | null {
  const heldOut = dataset !== null && dataset.heldOut.tokenCount > 1;
  const split = heldOut ? dataset.heldOut : dataset?.train;
  const available = split === undefined ? Infinity : split.tokenCount - 1;
  const tokens = Math.min(check.tokenCount, Math.floor(logitsMax / vocabSize), available);
  if (tokens < 1) return null;
  const time = Math.min(check.sequenceLength, maxPositionEmbeddings, tokens);
  const batch = Math.floor(tokens / time);
  const read = split?.read(0, batch * time + 1) ?? drawn(batch * time + 1, vocabSize);
  return { rows: { inputs: read.slice(0, -1), targets: read.slice(1), batch, time }, heldOut };
}

function drawn(count: number, vocabSize: number): Int32Array {
  const random = Random.forStream(0, 'export');
  return Int32Array.from({ length: count }, () => random.uint32() % vocabSize);
}
