import { tinySpec } from '../engine/tinyRun.js';

/** The run whose losses are kept: a warm start, three cycles, grouped-query attention and micro-batches. */
export const goldenSpec = tinySpec({
  batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
  evaluation: { finalTokenCount: 16 },
});
