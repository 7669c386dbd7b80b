import { tinySpec } from '../engine/tinyRun.js';

/** The run whose losses are kept: a warm start, three cycles, grouped-query attention and micro-batches. */
export const goldenSpec = tinySpec({
  batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
  evaluation: { finalTokenCount: 16 },
  streams: { dataCut: 1, dropout: 1 },
});

/** The same over a text of few words, in its second and third pass, each of which begins where the one before it ended. */
export const secondCutSpec = { ...goldenSpec, streams: { dataCut: 2, dropout: 1 } };

/** The same with dropout, whose masks are counted. */
export const secondDropoutSpec = {
  ...goldenSpec,
  adapter: { ...goldenSpec.adapter!, dropout: 0.2 },
  streams: { dataCut: 1, dropout: 2 },
};
