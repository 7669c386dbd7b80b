import type { RunSpec, StopReason } from '../plan/runSpec.js';

/** History of the run's held-out loss; only of evaluations on `evaluation.tokenCount` tokens. */
export interface HeldOutRecord {
  /** Loss of the last evaluation; null before the first, and if it was not finite. */
  loss: number | null;
  /** The lowest loss, and the number of steps taken before it. */
  best: { step: number; loss: number } | null;
  /** A loss counts as better if it is below this by `stop.minImprovement`. */
  reference: number | null;
  /** Consecutive evaluations that were not better. */
  worseCount: number;
}

export const emptyRecord: HeldOutRecord = { loss: null, best: null, reference: null, worseCount: 0 };

/** The record after an evaluation. A loss that is not finite never counts as better. */
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

/** Input of the decision whether a run ends before its last step. */
export interface StopFacts {
  heldOut: HeldOutRecord;
  trainedTokens: number;
  /** Since the job began, pauses included. */
  seconds: number;
  /** Seconds for which its trainers held the device. */
  deviceSeconds: number;
  isRequested: boolean;
}

export interface StopReport {
  reason: StopReason;
  /** Value that reached the limit, in the unit of the setting; both are 0 for a request. */
  value: number;
  limit: number;
}

/** Why a run ends now; null if it does not. Limits on time are checked last: all others give the same answer in every repetition. */
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
