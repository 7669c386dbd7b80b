import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beginRun, countParameters, disposeRun, trainLoop } from '../../engine/dist/index.js';
import { rankFigures } from '../../engine/dist/training/rankTelemetry.js';

/** Points of the training curve. */
const binCount = 100;

/**
 * Trains one specification to its end as a server does, and returns what the comparison needs as plain data: the held-out curve, the
 * training curve in bins, the final held-out loss by parts, and the rank of the linear layers' change since the adapters began.
 */
export async function trainOne(spec, { device, dataset }) {
  const runFolder = mkdtempSync(join(tmpdir(), 'relora-convergence-'));
  const run = await beginRun({ spec, device, dataset, runFolder, attempt: 1 });
  const curve = [];
  const { stepCount: changeFromStep } = spec.warmStart;
  let start = changeFromStep === 0 ? await weightsOf(run.model) : null;
  let seconds = 0;
  const losses = [];
  const restarts = [];
  const processorTimes = [];
  let [processorSeconds, peakBytes, before] = [0, 0, process.cpuUsage()];
  try {
    for await (const event of trainLoop(run, new AbortController().signal)) {
      const { user, system } = process.cpuUsage(before);
      before = process.cpuUsage();
      // Evaluations are not part of the method.
      if (event.kind === 'step' || event.kind === 'restart') processorSeconds += (user + system) / 1e6;
      if (event.kind === 'step') {
        processorTimes[event.step] = processorSeconds;
        peakBytes = Math.max(peakBytes, event.residentBytes);
      }
      if (event.kind === 'step') seconds += event.stepSeconds;
      if (event.kind === 'step') losses[event.step] = event.loss;
      if (event.kind === 'restart') restarts.push(event.step);
      if (event.kind === 'step' && event.step === changeFromStep - 1) start = await weightsOf(run.model);
      if (event.kind === 'restart') seconds += event.seconds;
      if (event.kind === 'evaluation')
        curve.push({ tokenCount: run.progress.trainedTokens, loss: event.loss });
    }
    return {
      curve,
      seconds,
      processorSeconds,
      peakBytes,
      bins: binned(losses, processorTimes),
      heldOutParts: await lossByPart(run),
      jumps: restarts.map((step) => jumpAt(losses, step)),
      stateBytes: stateBytes(run),
      effectiveRank: await meanEffectiveRank(run, start),
      trainableCount: countParameters(spec).trainable,
      failure: null,
    };
  } catch (error) {
    // That a run diverges at some rate is a result, not an error of the comparison.
    if (error.code !== 'TRAINING_DIVERGED' && error.code !== 'MERGE_NOT_FINITE') throw error;
    return { failure: error.message };
  } finally {
    disposeRun(run);
    rmSync(runFolder, { recursive: true, force: true });
  }
}

/** Mean losses of equally long stretches, each with the number of steps and processor seconds until its end. */
function binned(losses, processorTimes) {
  const length = Math.ceil(losses.length / binCount);
  const bins = [];
  for (let begin = 0; begin < losses.length; begin += length) {
    const some = losses.slice(begin, begin + length);
    const stepCount = begin + some.length;
    const loss = some.reduce((sum, value) => sum + value, 0) / some.length;
    bins.push({ stepCount, loss, processorSeconds: processorTimes[stepCount - 1] });
  }
  return bins;
}

const jumpSteps = 10;

/** Mean training loss of the steps after a restart minus that of the steps before it. */
function jumpAt(losses, step) {
  const mean = (some) => some.reduce((sum, loss) => sum + loss, 0) / some.length;
  return mean(losses.slice(step, step + jumpSteps)) - mean(losses.slice(step - jumpSteps, step));
}

/** Bytes of optimizer state. */
function stateBytes({ optimizer }) {
  const sizes = [...optimizer.state()].map(
    ({ shape, dtype }) => shape.reduce((size, side) => size * side, 1) * (dtype === 'F32' ? 4 : 1),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** Loss on each piece of the held-out text, for a piecewise comparison of two runs. */
async function lossByPart({ model, device, result, dataset, spec }) {
  const { sequenceLength, microBatchSequenceCount: sequenceCount } = spec.batch;
  const parts = [];
  for await (const { inputs, targets } of dataset.heldOutBatches({
    sequenceLength,
    sequenceCount,
    tokenCount: spec.evaluation.finalTokenCount,
  })) {
    device.clearResult(result);
    model.addLoss({ inputs, targets, batch: inputs.length / sequenceLength, time: sequenceLength }, result);
    const { lossSum: sum } = await device.readResult(result);
    parts.push({ sum, count: targets.filter((target) => target !== -1).length });
  }
  return parts;
}

/** Copies of the linear weights with adapters merged. */
function weightsOf(model) {
  return Promise.all(model.layers.map((layer) => model.mergedWeight(layer)));
}

async function meanEffectiveRank({ model, device }, start) {
  const now = await weightsOf(model);
  let sum = 0;
  for (const [index, { inFeatures, outFeatures }] of model.layers.entries()) {
    const change = now[index].map((value, i) => value - start[index][i]);
    sum += rankFigures(await device.singularValues(change, inFeatures, outFeatures)).effectiveRank;
  }
  return sum / model.layers.length;
}
