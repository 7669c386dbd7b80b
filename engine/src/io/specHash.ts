import { createHash } from 'node:crypto';
import type { RunSpec } from '../plan/runSpec.js';

/**
 * SHA-256 over what decides the weights of a run. Settings of watching, keeping and exporting are left out: a run may be
 * resumed with others of those.
 */
export function specHash(spec: RunSpec): string {
  const {
    kind,
    model,
    baseWeightsFolder,
    dataset,
    warmStart,
    adapter,
    stepCount,
    learningRate,
    optimizer,
    batch,
    seed,
  } = spec;
  const deciding = {
    kind,
    model,
    baseWeightsFolder,
    dataset,
    warmStart,
    adapter,
    stepCount,
    learningRate,
    optimizer,
    batch,
    seed,
    precision: spec.precision,
  };
  return createHash('sha256')
    .update(JSON.stringify(sorted(deciding)))
    .digest('hex');
}

/** The same value with the keys of every object in order, so that equal settings have equal text. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .map(([key, entry]) => [key, sorted(entry)]),
  );
}
