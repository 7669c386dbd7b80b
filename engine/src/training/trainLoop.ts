import { performance } from 'node:perf_hooks';
import { saveCheckpoint } from './checkpoint.js';
import { beginAdapters, restart } from './cycle.js';
import { meetsBefore, refuseTogether, takeCycleMean, trainsApart } from './cycleMean.js';
import { takeDocuments } from './documentLosses.js';
import { dutiesBefore, followOrders, type StepOrders } from './duties.js';
import { accumulateGradients } from './gradients.js';
import { reportPlan, slowerThanPlanned } from './planReport.js';
import { requireSameBits } from './sameBits.js';
import { TrainingDiverged } from './trainingErrors.js';
import type { DocumentsReport, TrainingEvent } from '../plan/trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Trains one job: low-rank cycles over a frozen base, each ended by a merge (ReLoRA), after an optional full-rank warm
 * start. This function owns all control flow; what it calls never branches on the step number.
 *
 * It returns within one micro-batch after the signal is aborted, and at every `yield` and at its return the run is consistent: a checkpoint
 * saved then resumes exactly here. Each part of a step is therefore recorded in `run.progress` before its event is yielded, and is not
 * repeated when the loop is started again.
 *
 * In a run of several members each executes the loop on its part of the batch. Member 0 decides for all (duties.ts), and members leave the
 * loop only together: at `broadcast` and `any`.
 */
export async function* trainLoop(run: TrainingRun, signal: AbortSignal): AsyncGenerator<TrainingEvent> {
  const { spec, schedule, steering, model, device, optimizer, batches, progress, collective } = run;
  const { sequenceCount, sequenceLength, microBatchSequenceCount } = spec.batch;
  const leads = collective.rank === 0;

  for (const warning of run.warnings.splice(0)) yield { kind: 'warning', ...warning };

  for (;;) {
    const step = progress.nextStep;
    // First, so that nothing is measured, saved or decided on weights that differ between members.
    if (meetsBefore(step, run)) {
      const report = await restart(run);
      await takeCycleMean(run);
      if (report !== null) yield { kind: 'restart', step, ...report };
    }
    const decided: StepOrders = { updates: [], stopped: null, isAborted: signal.aborted };
    if (leads && !decided.isAborted && !run.isApart) yield* dutiesBefore(step, run, decided, signal);
    const orders = await collective.broadcast(decided);
    if (!leads) followOrders(step, run, orders);
    if (orders.isAborted) return;
    const isEnd = step >= schedule.stepCount || orders.stopped !== null;

    if (!isEnd && schedule.beginsAdapters(step) && model.adapterSettings === null) await beginAdapters(run);
    if (!isEnd && model.adapterSettings !== null && !run.isPlanReported) {
      const plan = leads ? await reportPlan(run, signal) : null;
      if (await collective.any(leads && plan === null)) return;
      run.isPlanReported = true;
      if (plan !== null) yield { kind: 'plan', step, ...plan };
      const warning = plan && slowerThanPlanned(plan);
      if (warning !== null) yield { kind: 'warning', ...warning };
    }

    // Before the step, so that the first update of a cycle already uses the re-warmed rate.
    if (!(isEnd && schedule.endsEarly) && progress.restartCount < schedule.restartNumberAt(step)) {
      const report = await restart(run);
      if (report !== null) yield { kind: 'restart', step, ...report };
    }
    if (isEnd) await requireSameBits(run);
    const isBest = spec.checkpoint.keepBest && progress.heldOut.best?.step === step;
    // If members average once a cycle, a checkpoint is due at each of these points.
    const isDue = isEnd || isBest || trainsApart(run) || steering.isDue('checkpoint', step);
    if (leads && !run.isApart && progress.savedStep < step && isDue) {
      const saved = await saveCheckpoint(run);
      steering.done('checkpoint');
      yield { kind: 'checkpoint', ...saved };
    }
    if (!run.isApart) steering.decided(step);
    if (isEnd) return;
    if (schedule.omits(step)) {
      yield omittedStep(run);
      continue;
    }

    const startedAt = performance.now();
    const batch = await untilAborted(batches.read(step * sequenceCount, sequenceCount), signal);
    if ((await collective.any(batch === null)) || batch === null) return;
    batches.prepare((step + 1) * sequenceCount, sequenceCount);
    const shape = {
      step,
      sequenceLength,
      microBatchSequenceCount,
      firstSequence: step * sequenceCount,
      seed: spec.seed,
      dropoutVersion: spec.streams.dropout,
      recompute: spec.recomputation === 'blocks',
      headPrecision: spec.headPrecision,
      maskDocuments: spec.batch.maskDocuments,
      reductionType: spec.reductionType,
      isApart: trainsApart(run),
    };
    const gradients = await accumulateGradients(run, batch, shape, signal);
    if (gradients === 'aborted') return;

    const learningRate = schedule.learningRateAt(step);
    // If no target counts there is no loss: weights and moments stay as they are, and no zero gradient decays them.
    const isEmpty = gradients === 'empty';
    if (!isEmpty) {
      device.sumSquares(run.result, gradients.parts);
      if (shape.isApart) await refuseTogether(run);
      // The device checks loss and norm: after a divergence, weights, moments and the last checkpoint stay usable.
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
      const rows = { step, loss, ...batch, rowLosses, sequenceLength, firstSequence };
      const taken = takeDocuments(progress.documents, rows, spec.documentWindowStepCount);
      progress.documents = taken.record;
      reports = taken.reports;
    }
    const tokenCount = sequenceCount * sequenceLength;
    if (shape.isApart) run.isApart = true;
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

/** Null if the signal is aborted first: a disk may be slow, and the first use of a shard reads all of it. */
async function untilAborted<T>(value: Promise<T>, signal: AbortSignal): Promise<T | null> {
  let abort!: () => void;
  const aborted = new Promise<null>((resolve) => {
    abort = () => resolve(null);
    signal.addEventListener('abort', abort, { once: true });
  });
  value.catch(() => {}); // nobody awaits it any longer
  try {
    return await Promise.race([value, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/** Passes a step that the job asks to omit: its batch is not read, and nothing is learned from it. */
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
