import type { BasePrecision, ProductPrecision } from '../backend/nativeAddon.js';
import type { LayerGraph } from '../plan/adapterGraphs.js';
import type { Phase, Recomputation, TargetModule } from '../plan/runSpec.js';

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
      /** Passed over because the job asks so: nothing was computed, and `skipped` is set too. */
      omitted?: boolean;
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
      /** How the adapter phase is computed; the choice is a function of the job and the instruction set alone. */
      kind: 'plan';
      /** Step that comes next. */
      step: number;
      /** Of the adapted modules. */
      graphs: { module: TargetModule; graph: LayerGraph }[];
      /** Operations of a step in the adapted layers, in equivalents of a product with the base; and with separate paths alone. */
      plannedOperations: number;
      separateOperations: number;
      /** Seconds of a step up to its gradients, as timed now; null where that was not done (planReport.ts). */
      plannedSeconds: number | null;
      separateSeconds: number | null;
      recomputation: Exclude<Recomputation, 'auto'>;
      precision: ProductPrecision;
      basePrecision: BasePrecision;
      /** Of native products; empty elsewhere. */
      instructionSet: string;
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
