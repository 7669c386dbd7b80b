import { tinySpec } from '../engine/tinyRun.js';

/** The run whose losses are kept: a warm start, three cycles, grouped-query attention and micro-batches. */
export const goldenSpec = tinySpec({
  batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
  evaluation: { finalTokenCount: 16 },
  streams: { dataCut: 1, dropout: 1, fullRankWarmup: 1 },
});

/** The same over a text of few words, in its second and third pass, each of which begins where the one before it ended. */
export const secondCutSpec = { ...goldenSpec, streams: { ...goldenSpec.streams, dataCut: 2 } };

/** The same with dropout, whose masks are counted. */
export const secondDropoutSpec = {
  ...goldenSpec,
  adapter: { ...goldenSpec.adapter!, dropout: 0.2 },
  streams: { ...goldenSpec.streams, dropout: 2 },
};

/** The same by Muon in the warm start and in the adapters, which begin within the span of those before. */
export const muonSpec = {
  ...goldenSpec,
  warmStart: { ...goldenSpec.warmStart, optimizer: 'muon' as const },
  adapter: {
    ...goldenSpec.adapter!,
    adapterOptimizer: 'loraMuon' as const,
    initialisation: 'oldSpan' as const,
    momentReset: 'carry' as const,
  },
};

/** The same model trained whole by APOLLO-Mini. */
export const apolloMiniSpec = {
  ...goldenSpec,
  kind: 'fullRank' as const,
  adapter: null,
  warmStart: { ...goldenSpec.warmStart, stepCount: 0 },
  optimizer: { ...goldenSpec.optimizer, fullRankOptimizer: 'apolloMini' as const },
};

/** The same with full-rank steps between cycles, whose rate rises. */
export const secondWarmupSpec = {
  ...goldenSpec,
  adapter: { ...goldenSpec.adapter!, fullRankStepCount: 2 },
  streams: { ...goldenSpec.streams, fullRankWarmup: 2 },
};
