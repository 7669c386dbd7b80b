import { performance } from 'node:perf_hooks';
import { saveCheckpoint } from './checkpoint.js';
import { beginAdapters, restart } from './cycle.js';
import { closeWindow, takeDocuments } from './documentLosses.js';
import { recordAfter } from './earlyStop.js';
import { evaluate } from './evaluation.js';
import { accumulateGradients } from './gradients.js';
import { reportPlan, slowerThanPlanned } from './planReport.js';
import { writeSample } from './sample.js';
import { TrainingDiverged } from './trainingErrors.js';
import type { DocumentsReport, TrainingEvent } from '../plan/trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Trains one job: low-rank cycles over a frozen base, each ended by a merge (ReLoRA), after an optional full-rank warm
 * start. This function owns all control flow; what it calls never branches on the step number.
 *
 * It returns within one micro-batch after the signal is aborted, and at every `yield` and at its return the run is whole:
 * a checkpoint saved then resumes exactly here. Each part of a step is therefore entered in `run.progress` before its
 * event is given out, and is not repeated when the loop is begun again.
 */
export async function* trainLoop(run: TrainingRun, signal: AbortSignal): AsyncGenerator<TrainingEvent> {
  const { spec, schedule, steering, model, device, optimizer, batches, progress } = run;
  const hasHeldOut = run.data.parts.some(({ source }) => source.heldOut.tokenCount > 0);
  const { sequenceCount, sequenceLength, microBatchSequenceCount } = spec.batch;

  for (const warning of run.warnings.splice(0)) yield { kind: 'warning', ...warning };

  for (;;) {
    if (signal.aborted) return;
    const step = progress.nextStep;
    // First of all, and before a checkpoint: a resumed run has applied what its checkpoint came after.
    for (let update = steering.applyNext(step); update !== undefined; update = steering.applyNext(step)) {
      progress.updateNumber = update.number;
      yield { kind: 'update', ...update };
    }

    // All that comes before the step comes before the checkpoint too, so that a resumed run has done and reported it. What losses are
    // compared by is measured on as many tokens each time.
    const isLast = step >= schedule.stepCount;
    const compares = step > 0 && (isLast ? spec.checkpoint.keepBest : steering.isDue('evaluation', step));
    if (hasHeldOut && progress.evaluatedStep < step && compares) {
      const evaluation = await evaluate(run, spec.evaluation.tokenCount, signal);
      if (evaluation === null) return;
      progress.evaluatedStep = step;
      progress.heldOut = recordAfter(progress.heldOut, { step, loss: evaluation.loss }, spec.stop);
      steering.done('evaluation');
      yield { kind: 'evaluation', step, ...evaluation };
    }
    const stopped = isLast ? null : steering.stopAt(step, progress);
    if (stopped !== null) yield { kind: 'stop', step, ...stopped };
    const isEnd = isLast || stopped !== null;
    if (isEnd) {
      const documents = { ...progress.documents };
      for (const report of closeWindow(documents, step)) {
        progress.documents = documents;
        yield { kind: 'documents', ...report };
      }
    }
    if (hasHeldOut && (step === 0 || isEnd) && needsWhole(run, step)) {
      const evaluation = await evaluate(run, spec.evaluation.finalTokenCount, signal);
      if (evaluation === null) return;
      progress.evaluatedStep = progress.wholeStep = step;
      steering.done('evaluation');
      yield { kind: 'evaluation', step, ...evaluation };
    }
    const samples = steering.isWanted('sample');
    if (samples && progress.sampledStep < step && (isEnd || steering.isDue('sample', step))) {
      const sample = await writeSample(run, step, signal);
      if (sample === null) return;
      progress.sampledStep = step;
      steering.done('sample');
      yield { kind: 'sample', step, ...sample };
    }
    if (!isEnd && schedule.beginsAdapters(step) && model.adapterSettings === null) await beginAdapters(run);
    if (!isEnd && model.adapterSettings !== null && !run.isPlanReported) {
      const plan = await reportPlan(run, signal);
      if (plan === null) return;
      run.isPlanReported = true;
      yield { kind: 'plan', step, ...plan };
      const warning = slowerThanPlanned(plan);
      if (warning !== null) yield { kind: 'warning', ...warning };
    }

    // Before the step, so that the first update of a cycle already has the re-warmed rate.
    if (!(isEnd && schedule.endsEarly) && progress.restartCount < schedule.restartNumberAt(step)) {
      yield { kind: 'restart', step, ...(await restart(run)) };
    }
    const isBest = spec.checkpoint.keepBest && progress.heldOut.best?.step === step;
    if (progress.savedStep < step && (isEnd || isBest || steering.isDue('checkpoint', step))) {
      const saved = await saveCheckpoint(run);
      steering.done('checkpoint');
      yield { kind: 'checkpoint', ...saved };
    }
    if (isEnd) return;
    if (schedule.omits(step)) {
      yield omittedStep(run);
      continue;
    }

    const startedAt = performance.now();
    const batch = await untilAborted(batches.read(step * sequenceCount, sequenceCount), signal);
    if (batch === null) return;
    batches.prepare((step + 1) * sequenceCount, sequenceCount);
    const shape = {
      step,
      sequenceLength,
      microBatchSequenceCount,
      firstSequence: step * sequenceCount,
      seed: spec.seed,
      dropoutVersion: spec.streams.dropout,
      recompute: spec.recomputation === 'blocks',
    };
    const gradients = await accumulateGradients(run, batch, shape, signal);
    if (gradients === 'aborted') return;

    const learningRate = schedule.learningRateAt(step);
    // Without a target that counts there is no loss: weights and moments stay, and no gradient of zero decays them.
    const isEmpty = gradients === 'empty';
    if (!isEmpty) {
      device.sumSquares(run.result, gradients.parts);
      // Loss and norm are checked on the device: after a divergence weights, moments and the last checkpoint stay usable.
      const clip = { result: run.result, normMax: spec.optimizer.gradientNormMax };
      optimizer.apply(gradients, learningRate, clip, schedule.phaseAt(step));
    }
    const { loss, squaredNorm, rowLosses } = await device.readResult(run.result);
    const gradientNorm = Math.sqrt(squaredNorm);
    const isFinite = Number.isFinite(loss) && Number.isFinite(gradientNorm);
    if (!isFinite && !isEmpty) optimizer.takeBack(gradients);
    const skipped = !isFinite || isEmpty;

    let reports: DocumentsReport[] = [];
    if (!isEmpty && rowLosses.length > 0) {
      const { firstSequence } = shape;
      const { endOfTextId } = run.dataset.tokenizer;
      const rows = { step, loss, ...batch, rowLosses, sequenceLength, firstSequence, endOfTextId };
      const taken = takeDocuments(progress.documents, rows, spec.documentWindowStepCount);
      progress.documents = taken.record;
      reports = taken.reports;
    }
    const tokenCount = sequenceCount * sequenceLength;
    progress.nextStep++;
    progress.trainedTokens += tokenCount;
    if (!isFinite) progress.skippedStepCount++;
    yield {
      kind: 'step',
      step,
      phase: schedule.phaseAt(step),
      loss,
      gradientNorm,
      learningRate,
      tokenCount,
      trainedTokens: progress.trainedTokens,
      stepSeconds: (performance.now() - startedAt) / 1000,
      skipped,
      residentBytes: process.memoryUsage.rss(),
    };
    for (const report of reports) yield { kind: 'documents', ...report };
    if (!isFinite && progress.skippedStepCount > spec.optimizer.nonfiniteStepCountMax) {
      throw new TrainingDiverged(step, loss, gradientNorm, progress.skippedStepCount);
    }
  }
}

/** Whether the first or last evaluation of the run is still to be made: one of the same size just before it serves as well. */
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

/** Null when the signal is aborted first: a disk may be slow, and the first use of a shard reads all of it. */
async function untilAborted<T>(value: Promise<T>, signal: AbortSignal): Promise<T | null> {
  let abort!: () => void;
  const aborted = new Promise<null>((resolve) => {
    abort = () => resolve(null);
    signal.addEventListener('abort', abort, { once: true });
  });
  value.catch(() => {}); // nobody waits for it any more
  try {
    return await Promise.race([value, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/** Goes past a step that the job asks to omit: its batch is not read, and nothing is learned from it. */
function omittedStep({ schedule, progress }: TrainingRun): TrainingEvent {
  const step = progress.nextStep++;
  return {
    kind: 'step',
    step,
    phase: schedule.phaseAt(step),
    loss: NaN,
    gradientNorm: NaN,
    learningRate: schedule.learningRateAt(step),
    tokenCount: 0,
    trainedTokens: progress.trainedTokens,
    stepSeconds: 0,
    skipped: false,
    omitted: true,
    residentBytes: process.memoryUsage.rss(),
  };
}
