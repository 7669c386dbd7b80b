import type { RunSpec, StopReason } from '../plan/runSpec.js';

/** What a run knows of its held-out loss, by evaluations of one size: those on `evaluation.tokenCount`. */
export interface HeldOutRecord {
  /** Of the last evaluation; null before the first, and where it was not finite. */
  loss: number | null;
  /** The lowest, and the steps taken before it. */
  best: { step: number; loss: number } | null;
  /** What a loss has to be below by `stop.minImprovement` to count as better. */
  reference: number | null;
  /** Evaluations in a row that were not. */
  worseCount: number;
}

export const emptyRecord: HeldOutRecord = { loss: null, best: null, reference: null, worseCount: 0 };

/** The record after an evaluation. A loss that is not finite is no better than any. */
export function recordAfter(
  before: HeldOutRecord,
  { step, loss }: { step: number; loss: number },
  { minImprovement }: RunSpec['stop'],
): HeldOutRecord {
  if (!Number.isFinite(loss)) return { ...before, loss: null, worseCount: before.worseCount + 1 };
  const { best, reference } = before;
  const isBetter = reference === null || loss < reference - minImprovement;
  return {
    loss,
    best: best === null || loss < best.loss ? { step, loss } : best,
    reference: isBetter ? loss : reference,
    worseCount: isBetter ? 0 : before.worseCount + 1,
  };
}

/** What decides whether a run ends before its last step. */
export interface StopFacts {
  heldOut: HeldOutRecord;
  trainedTokens: number;
  /** Since the job began, with all pauses. */
  seconds: number;
  /** That its trainers held the device. */
  deviceSeconds: number;
  isRequested: boolean;
}

export interface StopReport {
  reason: StopReason;
  /** What came to the limit, in the unit of the setting; both are 0 for a request. */
  value: number;
  limit: number;
}

/** Why a run ends now; null where it does not. What a clock decides comes last: all else is the same in every repetition. */
export function reasonToStop(
  { stop }: RunSpec,
  { heldOut, trainedTokens, seconds, deviceSeconds, isRequested }: StopFacts,
): StopReport | null {
  const { evaluationLoss, patienceEvaluationCount: patience } = stop;
  if (isRequested) return { reason: 'requested', value: 0, limit: 0 };
  if (evaluationLoss > 0 && heldOut.loss !== null && heldOut.loss <= evaluationLoss)
    return { reason: 'evaluationLoss', value: heldOut.loss, limit: evaluationLoss };
  if (patience > 0 && heldOut.worseCount >= patience)
    return { reason: 'patience', value: heldOut.worseCount, limit: patience };
  if (stop.tokenCount > 0 && trainedTokens >= stop.tokenCount)
    return { reason: 'tokenCount', value: trainedTokens, limit: stop.tokenCount };
  if (stop.seconds > 0 && seconds >= stop.seconds)
    return { reason: 'seconds', value: seconds, limit: stop.seconds };
  const deviceHours = deviceSeconds / 3600;
  if (stop.deviceHours > 0 && deviceHours >= stop.deviceHours)
    return { reason: 'deviceHours', value: deviceHours, limit: stop.deviceHours };
  return null;
}
