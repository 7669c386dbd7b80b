import type { TrainingRun } from './trainingRun.js';

/** Logits that the probe may hold, twice: 32 MiB. */
const probeLogitsMax = 8 * 1024 ** 2;
const probeTokensMax = 256;

/**
 * Logits on the first tokens of the run's first sequence, in float32 whatever the run's precision: a merge must not change
 * them.
 */
export async function probeLogits(run: TrainingRun): Promise<Float32Array> {
  const { model, spec } = run;
  const tokenCount = Math.min(
    spec.batch.sequenceLength,
    probeTokensMax,
    Math.ceil(probeLogitsMax / model.config.vocabSize),
  );
  const { inputs } = await run.batches.read(0, 1);
  return model.logits(inputs.slice(0, tokenCount), 1, tokenCount, { precision: 'float32' });
}

/** Largest absolute difference between two arrays of the same length; NaN if there is one. */
export function largestChange(before: Float32Array, after: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < before.length; i++) {
    const change = Math.abs(after[i]! - before[i]!);
    if (Number.isNaN(change)) return NaN;
    if (change > largest) largest = change;
  }
  return largest;
}
