import type { Phase } from '../plan/runSpec.js';

/** What a run tells while it goes on. The server's journal stores these as they are, so they are plain data. */
export type TrainingEvent =
  | {
      kind: 'step';
      step: number;
      phase: Phase;
      loss: number;
      gradientNorm: number;
      learningRate: number;
      tokenCount: number;
      trainedTokens: number;
      stepSeconds: number;
      skipped: boolean;
      residentBytes: number;
    }
  | {
      kind: 'evaluation';
      /** Steps taken before it. */
      step: number;
      loss: number;
      perplexity: number;
      bitsPerByte: number;
      tokenCount: number;
      seconds: number;
    }
  | {
      kind: 'restart';
      /** Step before which it happened. */
      step: number;
      /** From 1. */
      restart: number;
      deltaNorm: number;
      logitChangeMax: number;
      momentsZeroedRatio: number;
      ranks: LayerRank[];
      effectiveRank: number;
      seconds: number;
    }
  | {
      kind: 'checkpoint';
      /** Step that a run resumes with. */
      step: number;
      /** Folder, complete and synced, inside the checkpoints folder. */
      path: string;
      sizeBytes: number;
      manifestSha256: string;
      seconds: number;
    }
  | { kind: 'sample'; step: number; prompt: string; text: string }
  | { kind: 'warning'; reason: string; message: string };

export interface LayerRank {
  layer: string;
  effectiveRank: number;
  rankAboveOnePercent: number;
  adapterRank: number;
}
