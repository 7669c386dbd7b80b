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
  | ({
      kind: 'restart';
      /** Step before which it happened. */
      step: number;
    } & RestartReport)
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

/** A restart and the proof that it was one: what changed, and that the function computed did not. */
export interface RestartReport {
  /** From 1. */
  restart: number;
  deltaNorm: number;
  /** Largest change of a logit on the probe, and what it was held to (mergeDrift.ts). */
  logitChangeMax: number;
  logitChangeTolerance: number;
  momentsZeroedRatio: number;
  ranks: LayerRank[];
  effectiveRank: number;
  modules: RestartModule[];
  /** Of the step before the restart and of the one after it. */
  learningRateBefore: number;
  learningRateAfter: number;
  /** On the probe, in the arithmetic of the run, just before and just after. */
  lossBefore: number;
  lossAfter: number;
  seconds: number;
}

/** One kind of layer; ranks are means over the layers that were measured, 0 where there are none. */
export interface RestartModule {
  module: TargetModule;
  deltaNorm: number;
  effectiveRank: number;
  rankAboveOnePercent: number;
  measuredLayerCount: number;
}

export interface LayerRank {
  layer: string;
  effectiveRank: number;
  rankAboveOnePercent: number;
  adapterRank: number;
}
