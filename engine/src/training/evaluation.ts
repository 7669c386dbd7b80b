import { setImmediate as nextTurn } from 'node:timers/promises';
import { performance } from 'node:perf_hooks';
import type { DataPart } from '../data/trainingData.js';
import { countTargets } from '../model/llama.js';
import type { DatasetEvaluation } from '../plan/trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

export interface EvaluationReport {
  /** Mean over the targets, nats; of a mixture the mean of its data sets' losses by their weights. */
  loss: number;
  perplexity: number;
  /** Of the text that the targets stand for: comparable between tokenizers and with compressors. 0 where they have none. */
  bitsPerByte: number;
  tokenCount: number;
  seconds: number;
  datasets: DatasetEvaluation[];
}

/**
 * Loss on the first `tokenCount` tokens of each held-out part, 0 for all of it, rounded up to whole sequences. Without
 * dropout; adapters as they are. Gives way between micro-batches; null when the signal is aborted.
 */
export async function evaluate(
  run: TrainingRun,
  tokenCount: number,
  signal: AbortSignal,
): Promise<EvaluationReport | null> {
  const { data, spec, progress } = run;
  const startedAt = performance.now();
  const epochs = data.epochsAt(progress.nextStep * spec.batch.sequenceCount);
  const sums: HeldOutSum[] = [];
  for (const part of data.parts) {
    const sum = await heldOutSum(run, part, tokenCount, signal);
    if (sum === null) return null;
    sums.push(sum);
  }
  return {
    ...over(weighted(data.parts, sums)),
    tokenCount: sums.reduce((total, { count }) => total + count, 0),
    seconds: (performance.now() - startedAt) / 1000,
    datasets: data.parts.map(({ dataset }, index) => {
      const sum = sums[index]!;
      return { dataset, ...over(sum), tokenCount: sum.count, epochs: epochs[index]! };
    }),
  };
}

/** Of the targets of a held-out part. */
interface HeldOutSum {
  loss: number;
  count: number;
  bytes: number;
}

async function heldOutSum(
  { model, spec, device, result }: TrainingRun,
  { source }: DataPart,
  tokenCount: number,
  signal: AbortSignal,
): Promise<HeldOutSum | null> {
  const { sequenceLength, microBatchSequenceCount } = spec.batch;
  let count = 0;
  let bytes = 0;
  device.clearResult(result);
  for await (const batch of source.heldOutBatches({
    sequenceLength,
    sequenceCount: microBatchSequenceCount,
    tokenCount,
  })) {
    await nextTurn();
    if (signal.aborted) return null;
    const { inputs, targets } = batch;
    model.addLoss({ inputs, targets, batch: inputs.length / sequenceLength, time: sequenceLength }, result);
    count += countTargets(targets);
    bytes += batch.byteCount;
  }
  if (count === 0) return { loss: 0, count, bytes };
  const { lossSum } = await device.readResult(result);
  return { loss: lossSum, count, bytes };
}

/**
 * One sum for all: each data set counts by its weight in the mixture and not by how much of it is held out. Those that are not
 * trained on count where nothing else is held out.
 */
function weighted(parts: readonly DataPart[], sums: readonly HeldOutSum[]): HeldOutSum {
  if (parts.length === 1) return sums[0]!;
  const isTrained = parts.some(({ weight }, index) => weight > 0 && sums[index]!.count > 0);
  const whole: HeldOutSum = { loss: 0, count: 0, bytes: 0 };
  for (const [index, { loss, count, bytes }] of sums.entries()) {
    const weight = isTrained ? parts[index]!.weight : 1;
    if (count === 0) continue;
    whole.loss += (weight * loss) / count;
    whole.count += weight;
    whole.bytes += (weight * bytes) / count;
  }
  return whole;
}

function over({
  loss: sum,
  count,
  bytes,
}: HeldOutSum): Pick<EvaluationReport, 'loss' | 'perplexity' | 'bitsPerByte'> {
  if (count === 0) return { loss: 0, perplexity: 0, bitsPerByte: 0 };
  const loss = sum / count;
  return {
    loss,
    perplexity: Math.exp(loss),
    bitsPerByte: bytes === 0 ? 0 : sum / Math.LN2 / bytes, // of a few completions alone the end may be counted
  };
}
