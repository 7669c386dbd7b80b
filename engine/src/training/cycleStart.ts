import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Directions } from '../model/adapterSet.js';
import { drawA } from '../model/adapters.js';
import type { LinearLayer } from '../model/linearLayer.js';
import { layerMethod } from '../plan/layerMethod.js';
import { Random } from '../random.js';
import { microBatches, ownSequences } from './gradients.js';
import { leadingDirections } from './leadingDirections.js';
import { spanStart, type SpanStart, type Turns } from './oldSpan.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Sets every layer's adapter to its initial value in cycle `number`, from 0: B = 0, and A random, or along the leading directions of the
 * weight's gradient on the next batch that is learned, or within the span of the old A. The adapters must be attached and merged. Null if
 * the new A does not depend on the old one.
 */
export async function startAdapters(run: TrainingRun, number: number): Promise<Turns | null> {
  const { model, spec } = run;
  const initialisation = spec.adapter?.initialisation ?? 'random';
  if (initialisation === 'gradientSvd') {
    // The next step allocates its gradients again; kept, they would add to those of the base.
    run.gradients.dispose();
    run.device.trim();
    model.restartAdapters(spec.seed, number, await gradientDirections(run, number));
    return null;
  }
  // In the first cycle there is no old A.
  if (initialisation === 'random' || number === 0) {
    model.restartAdapters(spec.seed, number, null);
    return null;
  }
  const starts = await spanStarts(run, number, initialisation === 'halfSpan');
  model.restartAdapters(spec.seed, number, new Map([...starts].map(([layer, { a }]) => [layer, a])));
  return new Map([...starts].map(([layer, { turn }]) => [layer.name, turn]));
}

async function spanStarts(
  { model, spec }: TrainingRun,
  number: number,
  isHalf: boolean,
): Promise<Map<LinearLayer, SpanStart>> {
  const starts = new Map<LinearLayer, SpanStart>();
  for (const layer of model.layers) {
    if (layer.adapter === null) continue;
    await nextTurn();
    const { rank, a, b } = layer.adapter;
    const { inFeatures, outFeatures } = layer;
    const [oldA, oldB] = [await model.valuesOf(a), await model.valuesOf(b)];
    const drawn = drawA(layer, rank, spec.seed, number);
    const random = Random.forStream(spec.seed, 'span', layer.name, number);
    const kept = isHalf ? Math.ceil(rank / 2) : rank;
    starts.set(layer, spanStart({ a: oldA, b: oldB, inFeatures, outFeatures, rank }, drawn, kept, random));
  }
  return starts;
}

/**
 * The gradient of each adapted weight over one whole batch (LoQT, arXiv 2405.16528), reduced to its directions and freed as soon as its
 * last micro-batch is done: with a single micro-batch, gradients of at most half a block exist at once. A layer whose gradient is not
 * finite has no directions.
 */
async function gradientDirections(run: TrainingRun, number: number): Promise<Directions> {
  const { model, spec, collective } = run;
  const { sequenceCount, sequenceLength, microBatchSequenceCount, maskDocuments } = spec.batch;
  const directions = new Map<LinearLayer, Float32Array>();
  const step = nextLearned(run);
  if (step === null) return directions;
  const batch = await run.batches.read(step * sequenceCount, sequenceCount);
  const sums = new Map<LinearLayer, Float32Array>();
  const shape = { sequenceLength, microBatchSequenceCount, maskDocuments };
  const micros = microBatches(batch, shape, ownSequences(sequenceCount, collective));
  const recompute = spec.recomputation === 'blocks';
  for (const [index, { inputs, targets, share, documents }] of micros.entries()) {
    await nextTurn();
    const isLast = index === micros.length - 1;
    await model.watchGradients(
      { inputs, targets, documents, batch: inputs.length / sequenceLength, time: sequenceLength },
      { lossScale: share, recompute },
      (layer) => {
        if (layer.adapter === null) return undefined;
        return async (gradient) => {
          const sum = sums.get(layer);
          if (sum !== undefined) for (let i = 0; i < sum.length; i++) sum[i]! += gradient[i]!;
          if (!isLast) return void (sum ?? sums.set(layer, gradient));
          sums.delete(layer);
          const whole = sum ?? gradient;
          await collective.sumValues(whole);
          const found = await directionsOf(run, layer, whole, number);
          if (found !== null) directions.set(layer, found);
        };
      },
    );
  }
  return directions;
}

/** The next step that the job does not ask to omit; null if all that are left are omitted, so that nothing is learned along A. */
function nextLearned({ schedule, progress }: TrainingRun): number | null {
  let step = progress.nextStep;
  while (schedule.omits(step)) if (++step >= schedule.stepCount) return null;
  return step;
}

async function directionsOf(
  { spec, device }: TrainingRun,
  { name, module, inFeatures, outFeatures }: LinearLayer,
  gradient: Float32Array,
  number: number,
): Promise<Float32Array | null> {
  if (!gradient.every(Number.isFinite)) return null;
  const { rank } = layerMethod(spec.adapter!, module);
  const random = Random.forStream(spec.seed, 'directions', name, number);
  return await leadingDirections(device, gradient, inFeatures, outFeatures, rank, random);
}
