import { tinySpec } from '../engine/tinyRun.js';

/** The run whose losses are stored: a warm start, three cycles, grouped-query attention and micro-batches. */
export const goldenSpec = tinySpec({
  batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
  evaluation: { finalTokenCount: 16 },
  streams: { dataCut: 1, dropout: 1, fullRankWarmup: 1 },
});

/** The same on a short text, up to its third pass; each pass begins where the previous one ended. */
export const secondCutSpec = { ...goldenSpec, streams: { ...goldenSpec.streams, dataCut: 2 } };

/** The same with dropout, whose masks are counter-based. */
export const secondDropoutSpec = {
  ...goldenSpec,
  adapter: { ...goldenSpec.adapter!, dropout: 0.2 },
  streams: { ...goldenSpec.streams, dropout: 2 },
};

/** The same with Muon in the warm start and for adapters, whose A starts within the span of the previous one. */
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

/** The same model trained full-rank by APOLLO-Mini. */
export const apolloMiniSpec = {
  ...goldenSpec,
  kind: 'fullRank' as const,
  adapter: null,
  warmStart: { ...goldenSpec.warmStart, stepCount: 0 },
  optimizer: { ...goldenSpec.optimizer, fullRankOptimizer: 'apolloMini' as const },
};

/** The same with full-rank steps between cycles, with a warm-up. */
export const secondWarmupSpec = {
  ...goldenSpec,
  adapter: { ...goldenSpec.adapter!, fullRankStepCount: 2 },
  streams: { ...goldenSpec.streams, fullRankWarmup: 2 },
};
