import { createHash } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { RunSpec } from './runSpec.js';
import { laterDefaults } from './storedRunSpec.js';

/**
 * SHA-256 over everything that determines the weights of a run. Left out are settings of monitoring, retention and export, recomputation,
 * which does not change any bits, and the end of the data, which only limits the steps: a run may be resumed with other values of these. A
 * setting added after the first release is left out if it has its default, so that the hash of runs that do not use it stays the same.
 * @param baseWeightsSha256 hash of the weights that the run started from; null for new ones
 */
export function specHash(spec: RunSpec, baseWeightsSha256: string | null): string {
  const {
    kind,
    model,
    baseWeightsHash,
    dataset,
    mixture,
    warmStart,
    adapter,
    stepCount,
    omittedSteps,
    omittedDocuments,
    streams,
    learningRate,
    optimizer,
    batch,
    seed,
  } = spec;
  const laterStreams = withoutDefaults(streams, laterDefaults.streams);
  const isByContent = baseWeightsHash === 'content' && baseWeightsSha256 !== null;
  const deciding = {
    kind,
    model: withoutDefaults(model, laterDefaults.model),
    baseWeightsFolder: isByContent ? null : spec.baseWeightsFolder,
    ...(isByContent && { baseWeightsSha256 }),
    dataset,
    ...(mixture.length > 0 && { mixture }),
    warmStart: withoutDefaults(warmStart, laterDefaults.warmStart),
    adapter: adapter && withoutDefaults(adapter, laterDefaults.adapter),
    stepCount,
    ...(omittedSteps.length > 0 && { skippedSteps: omittedSteps }), // its name in 0.1.0
    ...(omittedDocuments.length > 0 && { omittedDocuments }),
    ...(Object.keys(laterStreams).length > 0 && { streams: laterStreams }),
    learningRate,
    optimizer: withoutDefaults(optimizer, laterDefaults.optimizer),
    batch: withoutDefaults(batch, laterDefaults.batch),
    seed,
    ...(spec.replicas > 1 && { replicas: spec.replicas }),
    ...(spec.synchronization !== 'everyStep' && { synchronization: spec.synchronization }),
    ...(spec.reductionType !== 'float32' && { reductionType: spec.reductionType }),
    ...(spec.headPrecision !== 'same' && { headPrecision: spec.headPrecision }),
    precision: spec.precision,
  };
  return createHash('sha256')
    .update(JSON.stringify(sorted(deciding)))
    .digest('hex');
}

function withoutDefaults<T extends object>(settings: T, defaults: Partial<T>): Partial<T> {
  const entries = Object.entries(settings) as [keyof T, unknown][];
  return Object.fromEntries(
    entries.filter(
      ([key, value]) => !Object.hasOwn(defaults, key) || !isDeepStrictEqual(value, defaults[key]),
    ),
  ) as Partial<T>;
}

/** The same value with the keys of every object sorted, so that equal settings have equal text. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .map(([key, entry]) => [key, sorted(entry)]),
  );
}
