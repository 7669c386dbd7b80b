import { performance } from 'node:perf_hooks';
import type { DataPart } from '../data/trainingData.js';
import { heldOutLoss, meansOf, type HeldOutSum } from '../evaluation/heldOutLoss.js';
import { evaluateChoices } from '../evaluation/multipleChoice.js';
import type { DatasetEvaluation, NamedEvaluation } from '../plan/trainingEvent.js';
import type { ScoredSet } from './scoredSets.js';
import type { TrainingRun } from './trainingRun.js';

export interface EvaluationReport {
  /** Mean over the targets, in nats; for a mixture the weighted mean of its data sets' losses. */
  loss: number;
  perplexity: number;
  /** Per byte of the text that the targets stand for: comparable between tokenizers and with compressors. 0 if they stand for none. */
  bitsPerByte: number;
  tokenCount: number;
  seconds: number;
  datasets: DatasetEvaluation[];
}

/**
 * Loss on the first `tokenCount` tokens of each held-out part, rounded up to whole sequences; 0 for all tokens. Without dropout, with
 * adapters as they are. Yields to the event loop between micro-batches; null if the signal is aborted.
 */
export async function evaluate(
  run: TrainingRun,
  tokenCount: number,
  signal: AbortSignal,
): Promise<EvaluationReport | null> {
  const { data, spec, progress } = run;
  const startedAt = performance.now();
  const epochs = data.epochsAt(progress.nextStep * spec.batch.sequenceCount);
  const { sequenceLength, microBatchSequenceCount: sequenceCount } = spec.batch;
  const size = { sequenceLength, sequenceCount };
  const sums: HeldOutSum[] = [];
  for (const part of data.parts) {
    const sum = await heldOutLoss(run.model, run.result, part.source, { ...size, tokenCount }, signal);
    if (sum === null) return null;
    sums.push(sum);
  }
  return {
    ...meansOf(weighted(data.parts, sums)),
    tokenCount: sums.reduce((total, { count }) => total + count, 0),
    seconds: (performance.now() - startedAt) / 1000,
    datasets: data.parts.map(({ dataset }, index) => {
      const sum = sums[index]!;
      return { dataset, ...meansOf(sum), tokenCount: sum.count, epochs: epochs[index]! };
    }),
  };
}

/** Evaluates on one of the sets that the job names, as `evaluate` does on held-out parts. */
export async function evaluateNamed(
  { model, result, spec }: TrainingRun,
  { name, tokenCount, source }: ScoredSet,
  signal: AbortSignal,
): Promise<Omit<NamedEvaluation, 'step'> | null> {
  const startedAt = performance.now();
  const seconds = (): number => (performance.now() - startedAt) / 1000;
  if (source.kind === 'questions') {
    const choices = await evaluateChoices(model, result, source.questions, signal);
    return choices && { name, choices, seconds: seconds() };
  }
  const { sequenceLength, microBatchSequenceCount: sequenceCount } = spec.batch;
  const size = { sequenceLength, sequenceCount, tokenCount };
  const sum = await heldOutLoss(model, result, source.dataset, size, signal);
  if (sum === null) return null;
  const dataset = { dataset: source.name, ...meansOf(sum), tokenCount: sum.count, epochs: 0 };
  return { name, dataset, seconds: seconds() };
}

/**
 * One sum for all: each data set counts by its weight in the mixture, not by the size of its held-out part. Data sets of weight 0 count
 * only if no other has a held-out part.
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
