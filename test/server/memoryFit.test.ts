import type { RunSpec } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { decideRecomputation, whatWouldFit } from '@relora/engine/plan';
import { runSpec } from './parts.js';

const spec = runSpec('', { batch: { sequenceLength: 8, sequenceCount: 12, microBatchSequenceCount: 12 } });

/**
 * A machine on which each saving is a round number: 12 per sequence of a micro-batch, halved by recomputation, 100 for moments, 400 for the
 * base.
 */
function peakOf({ batch, recomputation, optimizer, precision, warmStart }: RunSpec): number {
  if (warmStart.stepCount > 0) return 5000;
  const activations = 12 * batch.microBatchSequenceCount * (recomputation === 'blocks' ? 0.5 : 1);
  const moments = optimizer.momentType === 'int8' ? 25 : 100;
  const base = { int8Base: 100, nf4Base: 50 }[precision as string] ?? 400;
  return activations + moments + base;
}

describe('what would fit', () => {
  it('names every change that is enough by itself, the largest micro-batch among them', () => {
    expect(whatWouldFit(spec, peakOf, 610)).toBe(
      'it would fit with batch.micro_batch_sequence_count 6, or with recomputation BLOCKS, or with optimizer.moment_type INT8, or with precision INT8_BASE',
    );
  });

  it('names the least changes that are enough together when none is alone', () => {
    expect(whatWouldFit(spec, peakOf, 440)).toBe('it would fit with precision INT8_BASE');
    expect(whatWouldFit(spec, peakOf, 190)).toBe(
      'it would fit with batch.micro_batch_sequence_count 1 and recomputation BLOCKS and optimizer.moment_type INT8 and precision INT8_BASE',
    );
  });

  it('says when it is the warm start that needs it', () => {
    const warmed: RunSpec = { ...spec, warmStart: { ...spec.warmStart, stepCount: 5 } };
    expect(whatWouldFit(warmed, peakOf, 700)).toBe(
      'it would fit with warm_start.step_count 0, since a warm start trains every weight',
    );
  });

  it('proposes nothing that is in use or not possible', () => {
    const reduced: RunSpec = {
      ...spec,
      recomputation: 'blocks',
      optimizer: { ...spec.optimizer, momentType: 'int8' },
      batch: { ...spec.batch, microBatchSequenceCount: 1 },
    };
    const none = 'no smaller form of it would; take a smaller model or shorter sequences';
    expect(whatWouldFit({ ...reduced, kind: 'fullRank', adapter: null }, peakOf, 200)).toBe(none);
    expect(whatWouldFit({ ...reduced, device: 'reference' }, peakOf, 200)).toBe(none);
    expect(whatWouldFit({ ...reduced, precision: 'nf4Base' }, peakOf, 10)).toBe(none);
    expect(whatWouldFit(reduced, peakOf, 90)).toBe('it would fit with precision NF4_BASE');
  });
});

describe('recomputation by itself', () => {
  it('is left open where the job fits, and where nothing helps', () => {
    expect(decideRecomputation(spec, peakOf, 644)).toBe(spec);
    expect(decideRecomputation(spec, peakOf, 571)).toBe(spec);
  });

  it('is on where the job fits with it alone', () => {
    expect(decideRecomputation(spec, peakOf, 643)).toEqual({ ...spec, recomputation: 'blocks' });
  });

  it('is as the client wants it', () => {
    const fixed: RunSpec = { ...spec, recomputation: 'none' };
    expect(decideRecomputation(fixed, peakOf, 600)).toBe(fixed);
  });
});
