import { JobPhase, JobState, spanOf, type JobEvent } from '@relora/sdk';

/** What a view shows of a job, collected from its events. */
export interface JobProgress {
  title: string;
  /** Of all phases; 0 while unknown. */
  stepCount: number;
  /** Steps taken. */
  step: number;
  state: JobState;
  reason: string;
  phase: JobPhase;
  losses: { firstStep: number; step: number; loss: number }[];
  evaluations: { step: number; loss: number; bitsPerByte: number }[];
  restarts: {
    step: number;
    /** From 1; those of a fork continue the count of its origin. */
    restart: number;
    deltaNorm: number;
    effectiveRank: number;
    logitChange: number;
    momentsZeroed: number;
  }[];
  learningRate: number;
  gradientNorm: number;
  /** Smoothed over about twenty steps. */
  tokensPerSecond: number;
  trainedTokens: number;
  /** Time of all steps, including repeated ones. */
  trainingSeconds: number;
  residentBytes: number;
  residentBytesMax: number;
  checkpointStep: number | null;
  sample: { step: number; prompt: string; text: string } | null;
  warning: string;
}

export function newProgress(title: string, stepCount: number): JobProgress {
  return {
    title,
    stepCount,
    step: 0,
    state: JobState.QUEUED,
    reason: '',
    phase: JobPhase.UNSPECIFIED,
    losses: [],
    evaluations: [],
    restarts: [],
    learningRate: 0,
    gradientNorm: 0,
    tokensPerSecond: 0,
    trainedTokens: 0,
    trainingSeconds: 0,
    residentBytes: 0,
    residentBytesMax: 0,
    checkpointStep: null,
    sample: null,
    warning: '',
  };
}

/** Takes one event into account. Steps that are repeated after a crash replace the earlier ones. */
export function advance(progress: JobProgress, event: JobEvent): void {
  switch (event.kind) {
    case 'storeChanged':
      // What was shown may never have happened in this store.
      Object.assign(progress, newProgress(progress.title, progress.stepCount), {
        warning: event.storeChanged.message,
      });
      break;
    case 'state':
      progress.state = event.state.to;
      progress.reason = event.state.failure
        ? `${event.state.failure.reason}: ${event.state.failure.message}`
        : event.state.reason;
      break;
    case 'step': {
      const { step, omitted } = event.step;
      const { firstStep, tokenCount, seconds, loss: spread } = spanOf(event.step);
      // The steps of a span are drawn with their mean.
      const loss = spread.valueCount > 0 ? spread.mean : event.step.loss;
      dropFrom(progress.losses, firstStep);
      dropFrom(progress.restarts, firstStep + 1);
      dropFrom(progress.evaluations, firstStep + 1);
      progress.step = step + 1;
      progress.phase = event.step.phase;
      progress.trainingSeconds += seconds;
      if (omitted) break;
      progress.losses.push({ firstStep, step, loss });
      progress.learningRate = event.step.learningRate;
      progress.gradientNorm = event.step.gradientNorm;
      progress.trainedTokens = event.step.trainedTokens;
      progress.residentBytes = event.step.residentBytes;
      progress.residentBytesMax = Math.max(progress.residentBytesMax, event.step.residentBytes);
      const rate = tokenCount / Math.max(1e-9, seconds);
      progress.tokensPerSecond =
        progress.tokensPerSecond === 0 ? rate : 0.9 * progress.tokensPerSecond + 0.1 * rate;
      break;
    }
    case 'evaluation': {
      const { step, loss, bitsPerByte } = event.evaluation;
      dropFrom(progress.evaluations, step);
      progress.evaluations.push({ step, loss, bitsPerByte });
      break;
    }
    case 'restart': {
      const { step, restart, deltaNorm, effectiveRank, logitChangeMax, momentsZeroedRatio } = event.restart;
      dropFrom(progress.restarts, step);
      progress.restarts.push({
        step,
        restart,
        deltaNorm,
        effectiveRank,
        logitChange: logitChangeMax,
        momentsZeroed: momentsZeroedRatio,
      });
      break;
    }
    case 'update':
      progress.stepCount = event.update.stepCount;
      break;
    case 'stop':
      progress.stepCount = event.stop.step;
      break;
    case 'checkpoint':
      progress.checkpointStep = event.checkpoint.step;
      break;
    case 'sample':
      progress.sample = event.sample;
      break;
    case 'warning':
      progress.warning = `${event.warning.reason}: ${event.warning.message}`;
      break;
    case 'artifact':
    case 'namedEvaluation':
    case 'documents':
    case 'plan':
      break;
  }
}

/** Seconds to the end at the current speed; null while unknown. */
export function remainingSeconds(progress: JobProgress): number | null {
  const { step, stepCount, trainedTokens, tokensPerSecond } = progress;
  if (step === 0 || stepCount === 0 || tokensPerSecond === 0) return null;
  return ((stepCount - step) * (trainedTokens / step)) / tokensPerSecond;
}

function dropFrom(entries: { step: number }[], step: number): void {
  while (entries.length > 0 && entries.at(-1)!.step >= step) entries.pop();
}
