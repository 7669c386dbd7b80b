import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Dataset } from '../data/dataset.js';
import type { ResultBuffer } from '../device/device.js';
import { countTargets, type Llama } from '../model/llama.js';

/** Sums over the targets of a held-out part. */
export interface HeldOutSum {
  /** In nats. */
  loss: number;
  count: number;
  bytes: number;
}

export interface HeldOutOptions {
  sequenceLength: number;
  /** Sequences computed at once. */
  sequenceCount: number;
  /** 0 for all tokens; rounded up to whole sequences. */
  tokenCount: number;
}

/**
 * Sums the losses of the first tokens of a held-out part; clears the result buffer. Yields to the event loop between micro-batches; null if
 * the signal is aborted.
 */
export async function heldOutLoss(
  model: Llama,
  result: ResultBuffer,
  source: Dataset,
  options: HeldOutOptions,
  signal: AbortSignal,
): Promise<HeldOutSum | null> {
  const { device } = model;
  const { sequenceLength } = options;
  let count = 0;
  let bytes = 0;
  device.clearResult(result);
  for await (const { inputs, targets, byteCount } of source.heldOutBatches(options)) {
    await nextTurn();
    if (signal.aborted) return null;
    model.addLoss({ inputs, targets, batch: inputs.length / sequenceLength, time: sequenceLength }, result);
    count += countTargets(targets);
    bytes += byteCount;
  }
  if (count === 0) return { loss: 0, count, bytes };
  const { lossSum } = await device.readResult(result);
  return { loss: lossSum, count, bytes };
}

/** The sums as means. */
export function meansOf({ loss: sum, count, bytes }: HeldOutSum): {
  loss: number;
  perplexity: number;
  bitsPerByte: number;
} {
  if (count === 0) return { loss: 0, perplexity: 0, bitsPerByte: 0 };
  const loss = sum / count;
  // A few completions may consist only of end tokens, which have no bytes.
  return { loss, perplexity: Math.exp(loss), bitsPerByte: bytes === 0 ? 0 : sum / Math.LN2 / bytes };
}
