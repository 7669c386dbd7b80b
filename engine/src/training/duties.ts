import { closeWindow } from './documentLosses.js';
import { recordAfter, type StopReport } from './earlyStop.js';
import { evaluate, evaluateNamed } from './evaluation.js';
import { namedDuty } from './steering.js';
import { writeSample } from './sample.js';
import type { RunUpdate } from '../plan/runUpdate.js';
import type { TrainingEvent } from '../plan/trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

/** Decisions of member 0 before a step, for all members of the run. */
export interface StepOrders {
  /** Changes of the run that apply from this step on. */
  updates: RunUpdate[];
  /** Why the run ends before this step; null if it does not. */
  stopped: StopReport | null;
  /** All members leave the loop. */
  isAborted: boolean;
}

/**
 * What only member 0 does and decides before a step: changes of the run, evaluations, its early end, samples. `orders` passes its decisions
 * to the other members. All of this comes before the checkpoint of the step too, so that a resumed run does not repeat it.
 */
export async function* dutiesBefore(
  step: number,
  run: TrainingRun,
  orders: StepOrders,
  signal: AbortSignal,
): AsyncGenerator<TrainingEvent, void> {
  const { spec, schedule, steering, progress } = run;
  // First of all, and before the checkpoint, so that a checkpoint includes all updates up to its step.
  yield* applyUpdates(step, run, orders.updates);

  const isLast = step >= schedule.stepCount;
  const isCompared = isLast ? spec.checkpoint.keepBest : steering.isDue('evaluation', step);
  if (isCompared && !(yield* compare(step, run, signal))) return abort(orders);
  const stopped = isLast ? null : steering.stopAt(step, progress);
  orders.stopped = stopped;
  if (stopped !== null) {
    yield { kind: 'stop', step, ...stopped };
    // As at a regular end: for an attempt that repeats this step after a crash, it is the last one.
    if (spec.checkpoint.keepBest && !(yield* compare(step, run, signal))) return abort(orders);
  }
  const isEnd = isLast || stopped !== null;
  if (isEnd) {
    const documents = { ...progress.documents };
    for (const report of closeWindow(documents, step)) {
      progress.documents = documents;
      yield { kind: 'documents', ...report };
    }
  }
  if (hasHeldOut(run) && (step === 0 || isEnd) && needsWhole(run, step)) {
    const evaluation = await evaluate(run, spec.evaluation.finalTokenCount, signal);
    if (evaluation === null) return abort(orders);
    progress.evaluatedStep = progress.wholeStep = step;
    steering.done('evaluation');
    yield { kind: 'evaluation', step, ...evaluation };
  }
  for (const set of run.scored) {
    const duty = namedDuty(set.name);
    if ((progress.namedSteps[set.name] ?? -1) >= step) continue;
    if (step > 0 && !isEnd && !steering.isDue(duty, step)) continue;
    const evaluation = await evaluateNamed(run, set, signal);
    if (evaluation === null) return abort(orders);
    progress.namedSteps = { ...progress.namedSteps, [set.name]: step };
    steering.done(duty);
    yield { kind: 'namedEvaluation', step, ...evaluation };
  }
  const samples = steering.isWanted('sample');
  if (samples && progress.sampledStep < step && (isEnd || steering.isDue('sample', step))) {
    const sample = await writeSample(run, step, signal);
    if (sample === null) return abort(orders);
    progress.sampledStep = step;
    steering.done('sample');
    yield { kind: 'sample', step, ...sample };
  }
}

/** Applies the decisions of member 0. */
export function followOrders(step: number, { steering, progress }: TrainingRun, orders: StepOrders): void {
  for (const update of orders.updates) {
    steering.add(update);
    steering.applyNext(step);
  }
  Object.assign(progress, steering.applied);
  if (orders.stopped !== null) steering.schedule.endAt(step);
}

function* applyUpdates(
  step: number,
  { steering, progress }: TrainingRun,
  applied: RunUpdate[],
): Generator<TrainingEvent> {
  for (let next = steering.applyNext(step); next !== undefined; next = steering.applyNext(step)) {
    Object.assign(progress, steering.applied);
    applied.push(next.update);
    yield { kind: 'update', ...next.report };
  }
}

/**
 * Evaluates a run for the comparison with its other evaluations, which is on the same number of tokens, if this step was not evaluated yet.
 * Returns false if the signal is aborted.
 */
async function* compare(
  step: number,
  run: TrainingRun,
  signal: AbortSignal,
): AsyncGenerator<TrainingEvent, boolean> {
  const { spec, steering, progress } = run;
  if (step === 0 || progress.evaluatedStep >= step || !hasHeldOut(run)) return true;
  const evaluation = await evaluate(run, spec.evaluation.tokenCount, signal);
  if (evaluation === null) return false;
  progress.evaluatedStep = step;
  progress.heldOut = recordAfter(progress.heldOut, { step, loss: evaluation.loss }, spec.stop);
  steering.done('evaluation');
  yield { kind: 'evaluation', step, ...evaluation };
  return true;
}

function hasHeldOut({ data }: TrainingRun): boolean {
  return data.parts.some(({ source }) => source.heldOut.tokenCount > 0);
}

function abort(orders: StepOrders): void {
  orders.isAborted = true;
}

/** Whether the first or last full evaluation is still needed: an evaluation of the same size at this step serves as well. */
function needsWhole({ progress, data, spec }: TrainingRun, step: number): boolean {
  if (progress.wholeStep >= step) return false;
  const { sequenceLength } = spec.batch;
  const { tokenCount, finalTokenCount } = spec.evaluation;
  const isSameSize = data.parts.every(({ source }) => {
    const total = source.heldOut.tokenCount;
    const sizeOf = (count: number): number =>
      count === 0 ? total : Math.min(total, Math.ceil(count / sequenceLength) * sequenceLength);
    return sizeOf(tokenCount) === sizeOf(finalTokenCount);
  });
  return progress.evaluatedStep < step || !isSameSize;
}
