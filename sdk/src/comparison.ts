import { createHash } from 'node:crypto';
import type { JobSpec } from './client.js';
import { JobKind } from './contract.js';

/**
 * The same training by another kind: model, data, seed, batch and number of tokens stay, so that the losses can be compared. What
 * the warm start of the other kinds does in full rank, FULL_RANK does in its one phase; LORA has no restarts.
 * @param spec of kind RELORA, with the steps of its warm start
 */
export function specOfKind(spec: JobSpec, kind: JobKind): JobSpec {
  switch (kind) {
    case JobKind.FULL_RANK: {
      const { adapter: _, warmStart, stepCount = 0, ...rest } = spec;
      return { ...rest, kind, stepCount: stepCount + (warmStart?.stepCount ?? 0) };
    }
    case JobKind.LORA: {
      const {
        cycleStepCount: _1,
        restartWarmupStepCount: _2,
        allowShortLastCycle: _3,
        ...adapter
      } = spec.adapter ?? {};
      return { ...spec, kind, adapter };
    }
    default:
      return { ...spec, kind };
  }
}

/** A UUID that is a function of a text: a call that is made again for the same purpose is the same call. */
export function requestIdOf(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`, // version 8: made by a rule of our own
    `8${hex.slice(17, 20)}`,
    hex.slice(20, 32),
  ].join('-');
}
