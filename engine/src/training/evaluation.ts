import { setImmediate as nextTurn } from 'node:timers/promises';
import { performance } from 'node:perf_hooks';
import { countTargets } from '../model/llama.js';
import type { TrainingRun } from './trainingRun.js';

export interface EvaluationReport {
  /** Mean over the targets, nats. */
  loss: number;
  perplexity: number;
  /** Of the text that the targets stand for: comparable between tokenizers and with compressors. 0 where they have none. */
  bitsPerByte: number;
  tokenCount: number;
  seconds: number;
}

/**
 * Loss on the first `tokenCount` tokens of the held-out part, 0 for all of it, rounded up to whole sequences. Without
 * dropout; adapters as they are. Gives way between micro-batches; null when the signal is aborted.
 */
export async function evaluate(
  run: TrainingRun,
  tokenCount: number,
  signal: AbortSignal,
): Promise<EvaluationReport | null> {
  const { model, dataset, spec } = run;
  const startedAt = performance.now();
  const { sequenceLength, microBatchSequenceCount } = spec.batch;
  const { device, result } = run;
  let count = 0;
  let bytes = 0;
  device.clearResult(result);
  for await (const batch of dataset.heldOutBatches({
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
  const { lossSum: sum } = await device.readResult(result);
  const loss = sum / count;
  return {
    loss,
    perplexity: Math.exp(loss),
    bitsPerByte: bytes === 0 ? 0 : sum / Math.LN2 / bytes, // of a few completions alone the end may be counted
    tokenCount: count,
    seconds: (performance.now() - startedAt) / 1000,
  };
}
